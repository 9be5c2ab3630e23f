"""Products of bytes by a packed weight of eight or four bits, and the packing.

A weight (out, in) lies in tiles of 32 outputs. A tile lies in groups of 64 inputs: first the whole
numbers, four inputs of all outputs after each other, as `vpdpbusd` reads them, then what they stand
for, in bfloat16.

- eight bits: one scale for each output and group. 128 is added to each byte, since that
  instruction takes one factor without a sign.
- four bits: for each output and 32 inputs the step and the least value, as in the Q4_1 blocks of
  llama.cpp; a weight that came from such blocks stays as it was. The outputs 16 to 31 of a tile are
  the upper halves of the bytes.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numba import int64

from deployments.engine.cpu.intrinsics import byte_instructions
from deployments.engine.cpu.kernels import compiled
from deployments.engine.cpu.layout import GROUP, HALF, TILE, group_bytes, padded
from deployments.engine.cpu.product_tiles import product_tile
from deployments.engine.host_memory import huge_zeros

_KIND = byte_instructions()
# Sums of more rows than that do not fit in the registers.
_MOST_ROWS = 8 if _KIND == "avx512_vnni" else 2
_NEAR_BYTES = 48 * 2**10  # of a tile that the first cache holds
_LEAST = 1e-30  # what a scale of zero divides by
_TOGETHER = 4096  # outputs that are packed together, whole tiles and groups
_GROUP_BYTES_4, _GROUP_BYTES_8 = group_bytes(4), group_bytes(8)


@compiled
def tile_at(weight: int, bits: int, inputs: int, tile: int) -> int:
    """Return the address of a tile of a packed weight."""
    size = _GROUP_BYTES_4 if bits == 4 else _GROUP_BYTES_8
    return weight + tile * (inputs // GROUP) * size


def _tile_of(rows: int, unroll: int) -> Any:
    """Return the function that multiplies so many rows by a tile of either bits, kept or not."""
    once_8, kept_8, once_4, kept_4 = (
        product_tile(rows, unroll, bits, _KIND, is_kept=is_kept and rows > 1)
        for bits in (8, 4)
        for is_kept in (False, True)
    )

    @compiled
    def multiply_rows(
        bits: int,
        is_kept: bool,
        weight: int,
        groups: int,
        x: int,
        x_row: int,
        a: int,
        b: int,
        c: int,
        step: int,
        y: int,
        y_row: int,
        added: int,
    ) -> None:
        if bits == 4 and is_kept:
            kept_4(weight, groups, x, x_row, a, b, c, step, y, y_row, added)
        elif bits == 4:
            once_4(weight, groups, x, x_row, a, b, c, step, y, y_row, added)
        elif is_kept:
            kept_8(weight, groups, x, x_row, a, b, c, step, y, y_row, added)
        else:
            once_8(weight, groups, x, x_row, a, b, c, step, y, y_row, added)

    return multiply_rows


_ROWS_1, _ROWS_2, _ROWS_4, _ROWS_8 = (
    _tile_of(*shape) for shape in ((1, 4), (2, 2), (4, 1), (8, 1))
)


@compiled
def multiply(
    weight: int,
    bits: int,
    inputs: int,
    x: int,
    x_row: int,
    sums: int,
    row_scales: int,
    halves: int,
    scales_row: int,
    out: int,
    out_row: int,
    is_added: int,
    rows: int,
    rows_after: int,
) -> None:
    """Multiply rows of bytes by one tile; addresses and distances in bytes (product_tile).

    Args:
        rows_after: how many more rows the same tile is multiplied by next.
    """
    groups = inputs // GROUP
    is_near = groups * (_GROUP_BYTES_4 if bits == 4 else _GROUP_BYTES_8) <= _NEAR_BYTES
    r = int64(0)
    while r < rows:
        x_at, y = x + r * x_row, out + r * out_row
        a, b, c = (
            sums + r * scales_row,
            row_scales + r * scales_row,
            halves + 2 * r * scales_row,
        )
        left, step, added = rows - r, scales_row, is_added
        size = 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
        size = min(size, _MOST_ROWS)
        is_kept = left + rows_after > size and not is_near
        if size == 8:
            _ROWS_8(bits, is_kept, weight, groups, x_at, x_row, a, b, c, step, y, out_row, added)
        elif size == 4:
            _ROWS_4(bits, is_kept, weight, groups, x_at, x_row, a, b, c, step, y, out_row, added)
        elif size == 2:
            _ROWS_2(bits, is_kept, weight, groups, x_at, x_row, a, b, c, step, y, out_row, added)
        else:
            _ROWS_1(bits, is_kept, weight, groups, x_at, x_row, a, b, c, step, y, out_row, added)
        r += size


class WeightMemory:
    """Hold all packed weights in one piece of memory of large pages, in the order of use.

    Args:
        shapes: (out, in) and the bits of each.
    """

    def __init__(self, shapes: Iterable[tuple[Sequence[int], int]]) -> None:
        size = sum(
            padded(outputs) // TILE * (padded(inputs) // GROUP) * group_bytes(bits)
            for (outputs, inputs), bits in shapes
        )
        self._free = huge_zeros([size], torch.uint8)

    def take(self, size: int) -> torch.Tensor:
        taken, self._free = self._free[:size], self._free[size:]
        return taken


class PackedWeight:
    """Hold a linear layer's weight in whole numbers of 8 or 4 bits.

    Args:
        weight: (out, in)
        bias: (out,) or None
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        memory: WeightMemory,
        bits: int = 8,
    ) -> None:
        outputs, inputs = weight.shape
        self._outputs, self._inputs, self._bits = outputs, inputs, bits
        self._weight = memory.take(
            padded(outputs) // TILE * (padded(inputs) // GROUP) * group_bytes(bits)
        )
        pack = _pack_four_bits if bits == 4 else _pack_bytes
        tiles = self._weight.view(-1, padded(inputs) // GROUP, group_bytes(bits))
        for first in range(0, outputs, _TOGETHER):
            piece = weight[first : first + _TOGETHER]
            whole = torch.zeros(padded(len(piece)), padded(inputs))
            whole[: len(piece), :inputs] = piece
            pack(whole, tiles[first // TILE : first // TILE + padded(len(piece)) // TILE])
        self._bias = None if bias is None else _padded_floats(bias)

    @property
    def fields(self) -> tuple[int, int, int, int, int]:
        """Return the address of the weight, that of the bias (0 for none), the bits, the outputs
        and the inputs."""
        bias = 0 if self._bias is None else self._bias.ctypes.data
        return self._weight.data_ptr(), bias, self._bits, self._outputs, self._inputs


def _pack_bytes(weight: torch.Tensor, tiles: torch.Tensor) -> None:
    """Write weight (out, in), whole tiles and groups, to tiles (out / 32, groups, bytes)."""
    groups = weight.view(len(weight), -1, GROUP)
    scales = (groups.abs().amax(2) / 127).bfloat16()
    steps = scales.float().clamp(min=_LEAST)[..., None]
    whole = (groups / steps).round_().clamp_(-127, 127).add_(128).to(torch.uint8)
    _write(tiles, _in_quads(whole), [scales])


def _pack_four_bits(weight: torch.Tensor, tiles: torch.Tensor) -> None:
    groups = weight.view(len(weight), -1, HALF)
    least = groups.amin(2)
    steps = ((groups.amax(2) - least) / 15).bfloat16()
    divisor = steps.float().clamp(min=_LEAST)[..., None]
    whole = ((groups - least[..., None]) / divisor).round_().clamp_(0, 15)
    # The least value that fits best to the step as it was rounded.
    least = (groups - whole * steps.float()[..., None]).mean(2).bfloat16()
    quads = _in_quads(whole.to(torch.uint8).view(len(weight), -1, GROUP))
    low, high = quads.view(*quads.shape[:3], 2, TILE // 2, 4).unbind(3)
    halves = [
        part.view(len(weight), -1, 2)[..., half] for part in (steps, least) for half in (0, 1)
    ]
    _write(tiles, low | high << 4, halves)


def _in_quads(whole: torch.Tensor) -> torch.Tensor:
    """Return whole (out, groups, 64) as (tiles, groups, 16, 32, 4): four inputs of all outputs."""
    tiles = whole.view(-1, TILE, whole.shape[1], GROUP // 4, 4)
    return tiles.permute(0, 2, 3, 1, 4).contiguous()


def _write(tiles: torch.Tensor, whole: torch.Tensor, columns: Sequence[torch.Tensor]) -> None:
    """Write the whole numbers of each group, then each of `columns` (out, groups)."""
    numbers = whole.flatten(2)
    tiles[:, :, : numbers.shape[2]] = numbers
    lines = [each.view(-1, TILE, each.shape[1]).transpose(1, 2) for each in columns]
    tiles[:, :, numbers.shape[2] :] = torch.cat(lines, 2).contiguous().view(torch.uint8)


def _padded_floats(values: torch.Tensor) -> Any:
    whole = np.zeros(padded(len(values)), np.float32)
    whole[: len(values)] = values.float().numpy()
    return whole
