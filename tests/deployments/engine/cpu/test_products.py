"""Products of bytes: exact in whole numbers, on a processor with the instructions and without."""

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from deployments.engine.cpu.intrinsics import byte_instructions
from deployments.engine.cpu.layout import GROUP, TILE
from deployments.engine.cpu.products import PackedWeight, WeightMemory, multiply
from deployments.engine.cpu.tiles import group_to_bytes, mixing_tile, product_tile

pytestmark = pytest.mark.slow  # each compiles

_OWN = byte_instructions()
KINDS = [None, _OWN]
if _OWN == "avx512_vnni" and torch.cpu.get_capabilities().get("avx_vnni"):
    KINDS.append("avx_vnni")


@njit
def to_bytes(x: Any, out: Any, sums: Any, scales: Any) -> None:
    for row in range(len(x)):
        for group in range(x.shape[1] // GROUP):
            first = group * GROUP
            group_to_bytes(
                x[row, first:].ctypes.data,
                out[row, first:].ctypes.data,
                sums[row, group:].ctypes.data,
                scales[row, group:].ctypes.data,
            )


def in_bytes(x: Any) -> tuple[Any, Any, Any]:
    """Return the bytes, sums and scales of x (rows, inputs)."""
    groups = x.shape[1] // GROUP
    out = np.zeros(x.shape, np.int8)
    sums = np.zeros((len(x), groups), np.int32)
    scales = np.zeros((len(x), groups), np.float32)
    to_bytes(x, out, sums, scales)
    return out, sums, scales


def packed(weight: torch.Tensor) -> PackedWeight:
    return PackedWeight(weight, None, WeightMemory([weight.shape]))


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def product_of_bytes(x: tuple[Any, Any, Any], weight: torch.Tensor) -> Any:
    """Return what the kernels compute, in float64."""
    scales = weight.abs().amax(1) / 127
    rounded = (weight / scales[:, None]).round().double().numpy()
    inputs, _, row_scales = x
    spread = np.repeat(row_scales, GROUP, axis=1).astype(np.float64)
    return (inputs * spread)[:, : rounded.shape[1]] @ rounded.T * scales.double().numpy()


def test_bytes_have_one_scale_for_each_group() -> None:
    x = random(3, 2 * GROUP)
    x[1, :GROUP] *= 1e4  # outliers of one group do not cost another its digits
    x[2, :GROUP] = 0
    out, sums, scales = in_bytes(x)
    assert np.allclose(scales[:, 0], np.abs(x[:, :GROUP]).max(1) / 127)
    back = out * np.repeat(scales, GROUP, axis=1)
    assert (np.abs(back - x) <= np.repeat(scales, GROUP, axis=1) * 0.5001).all()
    assert (sums == out.reshape(3, 2, GROUP).sum(2, dtype=np.int32) * -128).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_makes_no_scale(bad: float) -> None:
    x = random(1, GROUP)
    x[0, 5] = bad
    assert not np.isfinite(in_bytes(x)[2]).all()


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 11, 16])
def test_a_product_is_exact(rows: int) -> None:
    weight = torch.from_numpy(random(TILE, 3 * GROUP, seed=1))
    x = in_bytes(random(rows, 3 * GROUP))
    out = np.zeros((rows, TILE), np.float32)
    kept = packed(weight)
    tile, scales, *_ = kept.fields
    bytes_, sums, row_scales = x
    multiply(
        *(tile, 3 * GROUP, bytes_.ctypes.data, 3 * GROUP, sums.ctypes.data),
        *(row_scales.ctypes.data, 4 * 3, scales, out.ctypes.data, 4 * TILE, rows),
    )
    assert np.allclose(out, product_of_bytes(x, weight), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tile_gives_the_same(kind: str | None) -> None:
    tile_product = product_tile(2, 2, kind)

    @njit
    def run(weight: int, x: int, sums: int, row_scales: int, scales: int, out: int) -> None:
        quads, row = GROUP // 4, GROUP
        tile_product(weight, quads, x, row, sums, row_scales, 4, scales, out, 4 * TILE)

    weight = torch.from_numpy(random(TILE, GROUP, seed=2))
    weight[0] = weight[0].abs().max()  # the largest byte everywhere
    x = in_bytes(np.concatenate([np.full((1, GROUP), -1, np.float32), random(1, GROUP)]))
    out = np.zeros((2, TILE), np.float32)
    kept = packed(weight)
    tile, scales, *_ = kept.fields
    run(tile, *(array.ctypes.data for array in x), scales, out.ctypes.data)
    assert np.allclose(out, product_of_bytes(x, weight), rtol=1e-5, atol=1e-4)


def test_a_weight_is_padded_with_zeros() -> None:
    weight = torch.from_numpy(random(TILE + 5, GROUP - 7, seed=3))
    kept = packed(weight)
    bytes_, scales = kept._weight.view(-1, GROUP // 4, TILE, 4), kept._scales
    whole = bytes_.transpose(1, 2).reshape(-1, GROUP)[: TILE + 5].float() - 128
    assert not whole[:, GROUP - 7 :].any()
    assert not scales[TILE + 5 :].any()
    back = whole[:, : GROUP - 7] * torch.from_numpy(scales[: TILE + 5, None])
    assert (back - weight).abs().max() <= scales.max() / 2 + 1e-6


def test_a_row_of_zeros_stays_zero() -> None:
    assert not packed(torch.zeros(TILE, GROUP))._scales.any()


@pytest.mark.parametrize(("rows", "blocks", "unroll"), [(1, 1, 4), (3, 1, 1), (4, 4, 1), (2, 4, 2)])
def test_mixing_adds_a_product_with_bfloat16(rows: int, blocks: int, unroll: int) -> None:
    tile = mixing_tile(rows, blocks, unroll)

    @njit
    def run(w: int, line: int, count: int, x: int, x_row: int, y: int, y_row: int) -> None:
        tile(w, line, count, x, x_row, 4, y, y_row)

    w = torch.from_numpy(random(8, 16 * blocks)).bfloat16()
    x, y = torch.from_numpy(random(rows, 8, seed=1)), torch.from_numpy(random(rows, 16 * blocks))
    expected = y + x @ w.float()
    run(w.data_ptr(), 32 * blocks, 8, x.data_ptr(), 32, y.data_ptr(), 64 * blocks)
    assert torch.allclose(y, expected, rtol=1e-5, atol=1e-5)
