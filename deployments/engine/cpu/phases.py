"""Share the pieces of a phase among threads, without a thread that all wait for."""

from numba import int64

from deployments.engine.cpu.intrinsics import atomic_add, atomic_load, yield_core
from deployments.engine.cpu.kernels import compiled

_SPINS = 2000  # turns before a thread that waits offers its core to others


@compiled
def take(sync: int, phase: int) -> int:
    """Return the number of a piece that no other thread took.

    Args:
        sync: address of int64 (phases, 2): pieces taken, pieces done.
    """
    return atomic_add(sync + 16 * phase, int64(1))


@compiled
def share_begin(pieces: int, thread: int, threads: int) -> int:
    """Return the first piece of a thread's own share; it ends where the next one's begins."""
    return (pieces * thread + threads - 1) // threads


@compiled
def take_near(taken: int, phase: int, thread: int, threads: int, pieces: int) -> int:
    """Return the number of a piece that no other thread took, of the thread's own share while it
    has one: what it needs is in this core's cache. Returns `pieces` when none is left.

    Args:
        taken: address of int64 (phases, threads): pieces taken of each share.
    """
    for i in range(threads):
        owner = (thread + i) % threads
        first = share_begin(pieces, owner, threads)
        last = share_begin(pieces, owner + 1, threads)
        if first < last:
            piece = first + atomic_add(taken + 8 * (phase * threads + owner), int64(1))
            if piece < last:
                return piece
    return pieces


@compiled
def finish(sync: int, phase: int) -> None:
    """Count a piece that was taken as done."""
    atomic_add(sync + 16 * phase + 8, int64(1))


@compiled
def wait(sync: int, phase: int, pieces: int) -> None:
    """Wait until so many pieces are done."""
    turns = 0
    while atomic_load(sync + 16 * phase + 8) < pieces:
        turns += 1
        if turns > _SPINS:
            yield_core()
