"""Products of bytes: exact in whole numbers, on a processor with the instructions and without."""

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from deployments.engine.cpu.intrinsics import byte_instructions
from deployments.engine.cpu.layout import GROUP, HALF, TILE, group_bytes, padded
from deployments.engine.cpu.product_tiles import product_tile
from deployments.engine.cpu.products import PackedWeight, WeightMemory, multiply, tile_at
from deployments.engine.cpu.tiles import group_to_bytes, mixing_tile

pytestmark = pytest.mark.slow  # each compiles

_HAS = torch.cpu.get_capabilities()
KINDS = [None, *(kind for kind in ("avx2", "avx_vnni", "avx512_vnni") if _HAS.get(kind))]


def test_its_own_instructions_are_among_those_tried() -> None:
    assert byte_instructions() in KINDS


@njit
def to_bytes(x: Any, out: Any, sums: Any, scales: Any, halves: Any) -> None:
    for row in range(len(x)):
        for group in range(x.shape[1] // GROUP):
            first = group * GROUP
            group_to_bytes(
                x[row, first:].ctypes.data,
                out[row, first:].ctypes.data,
                sums[row, group:].ctypes.data,
                scales[row, group:].ctypes.data,
                halves[row, 2 * group :].ctypes.data,
            )


Bytes = tuple[Any, Any, Any, Any]


def in_bytes(x: Any) -> Bytes:
    """Return the bytes, sums, scales and half sums of x (rows, inputs)."""
    groups = x.shape[1] // GROUP
    out = np.zeros(x.shape, np.int8)
    sums = np.zeros((len(x), groups), np.int32)
    scales = np.zeros((len(x), groups), np.float32)
    halves = np.zeros((len(x), 2 * groups), np.float32)
    to_bytes(x, out, sums, scales, halves)
    return out, sums, scales, halves


def packed(weight: torch.Tensor, bits: int = 8) -> PackedWeight:
    return PackedWeight(weight, None, WeightMemory([(weight.shape, bits)]), bits)


def unpacked(kept: PackedWeight, inputs: int) -> torch.Tensor:
    """Return the numbers of a packed weight, whole tiles and groups, in float32."""
    _, _, bits, *_ = kept.fields
    groups = kept._weight.view(-1, padded(inputs) // GROUP, group_bytes(bits))
    size = GROUP * TILE * bits // 8
    numbers, columns = groups[:, :, :size], groups[:, :, size:].contiguous().view(torch.bfloat16)
    lines = columns.reshape(*columns.shape[:2], -1, TILE).float()  # (tiles, groups, lines, 32)
    if bits == 8:
        whole = numbers.reshape(*numbers.shape[:2], -1, TILE, 4).float() - 128
        found = whole * lines[:, :, 0, None, :, None]
    else:
        quads = numbers.reshape(*numbers.shape[:2], -1, TILE // 2, 4)
        whole = torch.cat([quads & 15, quads >> 4], 3).float()
        steps, least = lines[:, :, :2], lines[:, :, 2:]
        spread = [part.repeat_interleave(GROUP // 8, 2)[..., None] for part in (steps, least)]
        found = whole * spread[0] + spread[1]
    outputs = len(found) * TILE
    return found.permute(0, 3, 1, 2, 4).reshape(outputs, -1)


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def product_of_bytes(x: Bytes, kept: PackedWeight) -> Any:
    """Return what the kernels compute, in float64."""
    inputs, _, row_scales, _ = x
    spread = np.repeat(row_scales, GROUP, axis=1).astype(np.float64)
    return (inputs * spread) @ unpacked(kept, inputs.shape[1]).double().numpy().T


def test_bytes_have_one_scale_for_each_group() -> None:
    x = random(3, 2 * GROUP)
    x[1, :GROUP] *= 1e4  # outliers of one group do not cost another its digits
    x[2, :GROUP] = 0
    out, sums, scales, halves = in_bytes(x)
    assert np.allclose(scales[:, 0], np.abs(x[:, :GROUP]).max(1) / 127)
    back = out * np.repeat(scales, GROUP, axis=1)
    assert (np.abs(back - x) <= np.repeat(scales, GROUP, axis=1) * 0.5001).all()
    assert (sums == out.reshape(3, 2, GROUP).sum(2, dtype=np.int32) * -128).all()
    own_halves = back.reshape(3, 4, HALF).sum(2)
    assert np.allclose(halves, own_halves, rtol=1e-4, atol=1e-4 * np.abs(own_halves).max())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_makes_no_scale(bad: float) -> None:
    x = random(1, GROUP)
    x[0, 5] = bad
    assert not np.isfinite(in_bytes(x)[2]).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 11, 16])
@pytest.mark.parametrize(
    ("groups", "is_added", "rows_after"),
    [(3, 0, 0), (3, 1, 16), (49, 1, 0), (49, 0, 5)],  # a tile of 49 groups fills the first cache
)
def test_a_product_is_exact(
    rows: int, groups: int, is_added: int, rows_after: int, bits: int
) -> None:
    inputs = groups * GROUP
    weight = torch.from_numpy(random(2 * TILE, inputs, seed=1))
    x = in_bytes(random(rows, inputs))
    before = random(rows, TILE, seed=3)
    out = before.copy()
    kept = packed(weight, bits)
    second = tile_at(kept.fields[0], bits, inputs, 1)
    bytes_, sums, row_scales, halves = (each.ctypes.data for each in x)
    multiply(
        *(second, bits, inputs, bytes_, inputs, sums, row_scales, halves, 4 * groups),
        *(out.ctypes.data, 4 * TILE, is_added, rows, rows_after),
    )
    expected = before * is_added + product_of_bytes(x, kept)[:, TILE:]
    assert np.allclose(out, expected, rtol=1e-5, atol=1e-4 * groups)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tile_gives_the_same(kind: str | None, bits: int) -> None:
    tile_product = product_tile(2, 2, bits, kind)

    @njit
    def run(weight: int, x: int, sums: int, scales: int, halves: int, out: int) -> None:
        tile_product(weight, 1, x, GROUP, sums, scales, halves, 4, out, 4 * TILE, 0)

    weight = torch.from_numpy(random(TILE, GROUP, seed=2))
    weight[0] = weight[0].abs().max()  # the largest byte everywhere
    x = in_bytes(np.concatenate([np.full((1, GROUP), -1, np.float32), random(1, GROUP)]))
    out = np.zeros((2, TILE), np.float32)
    kept = packed(weight, bits)
    run(kept.fields[0], *(array.ctypes.data for array in x), out.ctypes.data)
    assert np.allclose(out, product_of_bytes(x, kept)[:, :TILE], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_padded_with_zeros(bits: int) -> None:
    weight = torch.from_numpy(random(TILE + 5, GROUP - 7, seed=3))
    whole = unpacked(packed(weight, bits), GROUP - 7)
    assert not whole[TILE + 5 :].any()
    found = whole[: TILE + 5, : GROUP - 7]
    # A half step, and what bfloat16 takes from the step or the least value.
    most = weight.abs().max() * (1 / 254 + 1 / 256) if bits == 8 else 2 * weight.abs().max() / 15
    assert (found - weight).abs().max() <= most
    if bits == 8:  # zeros; four bits say the least value of a group instead, times zero inputs
        assert not whole[:, GROUP - 7 :].any()


def test_outliers_of_one_group_do_not_cost_another_its_digits() -> None:
    weight = torch.from_numpy(random(TILE, 2 * GROUP, seed=3))
    weight[:, :GROUP] *= 1e4
    found = unpacked(packed(weight), 2 * GROUP)[:TILE]
    assert (found - weight)[:, GROUP:].abs().max() < weight[:, GROUP:].abs().max() / 128


def test_blocks_of_four_bits_stay_as_they_were() -> None:
    """The built-in base came from Q4_1: 16 values in each 32 inputs, in bfloat16."""
    generator = torch.Generator().manual_seed(4)
    whole = torch.randint(0, 16, (2 * TILE, 4, HALF), generator=generator)
    whole[..., 0], whole[..., 1] = 0, 15
    steps = torch.rand(2 * TILE, 4, 1, generator=generator).half().float() * 0.1 + 0.01
    least = -8 * steps + torch.randn(2 * TILE, 4, 1, generator=generator) * 0.01
    weight = (whole * steps + least).flatten(1).bfloat16().float()
    found = unpacked(packed(weight, 4), 4 * HALF)
    error = (found - weight).view(2 * TILE, 4, HALF) / steps
    assert error.abs().max() < 0.07, "of a step"
    again = ((found.view(2 * TILE, 4, HALF) - least) / steps).round().long()
    assert torch.equal(again, whole)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_of_zeros_stays_zero(bits: int) -> None:
    assert not unpacked(packed(torch.zeros(TILE, GROUP), bits), GROUP).any()


def test_outputs_that_are_packed_in_turn_lie_side_by_side() -> None:
    weight = torch.from_numpy(random(4096 + 7, 5, seed=5))
    found = unpacked(packed(weight), 5)[: len(weight), :5]
    assert (found - weight).abs().max() < weight.abs().max() / 100


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
