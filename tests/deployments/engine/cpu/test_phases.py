"""Pieces of a phase: each is taken once, a thread's own first."""

import numpy as np
import pytest

from deployments.engine.cpu.kernels import compiled
from deployments.engine.cpu.phases import take_near

pytestmark = pytest.mark.slow  # compiles


@compiled
def take(taken: int, phase: int, thread: int, threads: int, pieces: int) -> int:
    return take_near(taken, phase, thread, threads, pieces)


@pytest.mark.parametrize("pieces", [1, 2, 7, 16])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_piece_is_taken_once_and_ones_own_first(pieces: int, threads: int) -> None:
    taken = np.zeros((3, threads), np.int64)
    rng = np.random.default_rng(pieces)
    found: dict[int, list[int]] = {thread: [] for thread in range(threads)}
    while sum(map(len, found.values())) < pieces:
        thread = int(rng.integers(threads))
        piece = take(taken.ctypes.data, 1, thread, threads, pieces)
        assert 0 <= piece < pieces
        found[thread].append(piece)
    assert sorted(sum(found.values(), [])) == list(range(pieces))
    assert all(
        take(taken.ctypes.data, 1, thread, threads, pieces) == pieces for thread in range(threads)
    )
    assert not taken[[0, 2]].any(), "another phase was counted"


def test_a_thread_that_comes_late_leaves_its_share_to_the_others() -> None:
    taken = np.zeros((1, 2), np.int64)
    order = [take(taken.ctypes.data, 0, 1, 2, 6) for _ in range(7)]
    assert order == [3, 4, 5, 0, 1, 2, 6]
    assert take(taken.ctypes.data, 0, 0, 2, 6) == 6
