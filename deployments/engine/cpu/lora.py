"""LoRA's two products for one row: x @ A, then @ B. A and B are lines of bfloat16.

All functions take addresses.
"""

from typing import Any

from numba import carray, int16

from deployments.engine.cpu.intrinsics import array_at, from_bfloat16
from deployments.engine.cpu.kernels import compiled, floats, zero
from deployments.engine.cpu.tiles import dot_tile, mixing_tile

_DOTS_1, _DOTS_2, _DOTS_3, _DOTS_4 = (dot_tile(lines) for lines in (1, 2, 3, 4))
_ADD_16, _ADD_64 = mixing_tile(1, 1, 1), mixing_tile(1, 4, 1)


@compiled
def _line(address: int, count: int) -> Any:
    return carray(array_at(address), (count,), int16)


@compiled
def shrink(x: int, size: int, a: int, rank: int, out: int) -> None:
    """Write x (size,) @ A to out (rank,). A: (rank, size)."""
    whole = size & -16
    j = 0 if whole else rank
    if not whole:
        zero(floats(out, rank))
    while j < rank:
        lines, y = a + 2 * j * size, out + 4 * j
        left = min(rank - j, 4)
        if left == 4:
            _DOTS_4(lines, 2 * size, whole, x, y)
        elif left == 3:
            _DOTS_3(lines, 2 * size, whole, x, y)
        elif left == 2:
            _DOTS_2(lines, 2 * size, whole, x, y)
        else:
            _DOTS_1(lines, 2 * size, whole, x, y)
        j += left
    if whole < size:
        inputs, shrunk = floats(x, size), floats(out, rank)
        for j in range(rank):
            line = _line(a + 2 * j * size, size)
            for i in range(whole, size):
                shrunk[j] += inputs[i] * from_bfloat16(line[i])


@compiled
def expand(shrunk: int, rank: int, b: int, size: int, out: int) -> None:
    """Add shrunk (rank,) @ B to out (size,). B: (rank, size)."""
    i = 0
    while i + 64 <= size:
        _ADD_64(b + 2 * i, 2 * size, rank, shrunk, 0, 4, out + 4 * i, 0)
        i += 64
    while i + 16 <= size:
        _ADD_16(b + 2 * i, 2 * size, rank, shrunk, 0, 4, out + 4 * i, 0)
        i += 16
    if i < size:
        factors, y = floats(shrunk, rank), floats(out, size)
        for j in range(rank):
            line = _line(b + 2 * j * size, size)
            for k in range(i, size):
                y[k] += factors[j] * from_bfloat16(line[k])
