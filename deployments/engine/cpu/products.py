"""Products of bytes by a packed weight, and the packing.

A weight (out, in) has one scale for each output. It lies in tiles of 32 outputs, in each four
inputs of all outputs after each other, as `vpdpbusd` reads them; 128 is added to each byte, since
that instruction takes one factor without a sign.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numba import int64

from deployments.engine.cpu.intrinsics import byte_instructions
from deployments.engine.cpu.kernels import compiled
from deployments.engine.cpu.layout import TILE, padded
from deployments.engine.cpu.tiles import product_tile
from deployments.engine.huge_pages import huge_zeros

_KIND = byte_instructions()
# Sums of more rows than that do not fit in the registers.
_MOST_ROWS = 8 if _KIND == "avx512_vnni" else 2
_ROWS_1, _ROWS_2 = product_tile(1, 4, _KIND), product_tile(2, 2, _KIND)
_ROWS_4, _ROWS_8 = product_tile(4, 1, _KIND), product_tile(8, 1, _KIND)


@compiled
def multiply(
    weight: int,
    inputs: int,
    x: int,
    x_row: int,
    sums: int,
    row_scales: int,
    scales_row: int,
    scales: int,
    out: int,
    out_row: int,
    rows: int,
) -> None:
    """Multiply rows of bytes by one tile; addresses and distances in bytes (product_tile)."""
    quads = inputs // 4
    r = int64(0)
    while r < rows:
        x_at, out_at = x + r * x_row, out + r * out_row
        sums_at, scales_at = sums + r * scales_row, row_scales + r * scales_row
        left = rows - r
        if left >= 8 and _MOST_ROWS >= 8:
            _ROWS_8(
                weight, quads, x_at, x_row, sums_at, scales_at, scales_row, scales, out_at, out_row
            )
            r += 8
        elif left >= 4 and _MOST_ROWS >= 4:
            _ROWS_4(
                weight, quads, x_at, x_row, sums_at, scales_at, scales_row, scales, out_at, out_row
            )
            r += 4
        elif left >= 2:
            _ROWS_2(
                weight, quads, x_at, x_row, sums_at, scales_at, scales_row, scales, out_at, out_row
            )
            r += 2
        else:
            _ROWS_1(
                weight, quads, x_at, x_row, sums_at, scales_at, scales_row, scales, out_at, out_row
            )
            r += 1


class WeightMemory:
    """Hold all packed weights in one piece of memory of large pages, in the order of use."""

    def __init__(self, shapes: Iterable[Sequence[int]]) -> None:
        size = sum(padded(outputs) * padded(inputs) for outputs, inputs in shapes)
        self._free = huge_zeros([size], torch.uint8)

    def take(self, size: int) -> torch.Tensor:
        taken, self._free = self._free[:size], self._free[size:]
        return taken


class PackedWeight:
    """Hold a linear layer's weight in bytes.

    Args:
        weight: (out, in)
        bias: (out,) or None
    """

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, memory: WeightMemory
    ) -> None:
        outputs, inputs = weight.shape
        self._outputs = outputs
        scales = weight.float().abs().amax(1) / 127
        rounded = (weight.float() / scales.clamp(min=1e-30)[:, None]).round_()
        whole = torch.full((padded(outputs), padded(inputs)), 128, dtype=torch.uint8)
        whole[:outputs, :inputs] = rounded.add_(128).to(torch.uint8)
        tiles = whole.view(-1, TILE, padded(inputs) // 4, 4).transpose(1, 2)
        self._weight = memory.take(tiles.numel())
        self._weight.view(tiles.shape).copy_(tiles)
        self._scales = _padded_floats(scales)
        self._bias = None if bias is None else _padded_floats(bias)

    @property
    def fields(self) -> tuple[int, int, int, int]:
        """Return the addresses of weight, scales and bias (0 for none), and the outputs."""
        bias = 0 if self._bias is None else self._bias.ctypes.data
        return self._weight.data_ptr(), self._scales.ctypes.data, bias, self._outputs


def _padded_floats(values: torch.Tensor) -> Any:
    whole = np.zeros(padded(len(values)), np.float32)
    whole[: len(values)] = values.float().numpy()
    return whole
