"""Rows grouped by adapter: the groups, what is multiplied by them, and products that add it.

As test_kernels.py: on a GPU, or with TRITON_INTERPRET=1 in front of pytest.
"""

import dataclasses
from typing import Any

import pytest
import torch

from deployments.engine.kernels import ops
from deployments.engine.kernels.ops import Expansion
from tests.deployments.engine.kernels import torch_kernels
from tests.deployments.engine.kernels.test_kernels import FUSED, needs_kernels, rows, tensor
from tests.deployments.engine.kernels.test_triton_linear import all_equal, products_in_order

if FUSED:
    from deployments.engine.kernels import quantised_product, triton_groups
    from deployments.engine.kernels.quantised_tiles import Tile
    from deployments.engine.kernels.triton_groups import (
        group_rows,
        lora_expand_add,
        lora_shrink,
    )

pytestmark = needs_kernels
__all__ = ["products_in_order"]  # a fixture of every test here


def mixture(kind: str, count: int) -> torch.Tensor:
    if kind == "base":
        return torch.zeros(count, dtype=torch.long)
    if kind == "each its own":
        return torch.arange(count).flip(0)
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 4, (count,), generator=generator)


@pytest.mark.parametrize("kind", ["base", "each its own", "mixed"])
@pytest.mark.parametrize("count", [1, 2, 17, 64, 65, 130, 300])
def test_rows_are_grouped_by_slot(kind: str, count: int) -> None:
    slots = mixture(kind, count)
    num_slots = 4 if kind == "mixed" else count
    found = group_rows(slots.to(tensor(0, 1).device), num_slots, ranks=8, inputs=8)
    assert found.tile_rows == (16 if count <= 256 else 32)
    order, tiles, active = torch_kernels.group_rows(slots, found.tile_rows)
    assert torch.equal(found.order.cpu().long(), order)
    filled = found.tiles.cpu()[found.tiles.cpu()[:, 2] > 0]
    assert filled.tolist() == tiles
    assert bool((found.tiles[len(tiles) :, 2] == 0).all())
    assert found.active[: 1 + len(active)].tolist() == [len(active), *active]


def adapted(
    count: int, rank: int, starts: dict[int, int], inputs: int, slots: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor], Expansion]:
    """Return x, the stacks of A, and what is added. starts: first column -> columns."""
    x = tensor(0, count, inputs)
    a = [tensor(10 + i, 4, rank, inputs) / inputs**0.5 for i in range(len(starts))]
    b = [tensor(20 + i, 4, rank, n) * 0.3 for i, n in enumerate(starts.values())]
    for stack in (*a, *b):
        stack[0] = 0
    groups = group_rows(slots, 4, ranks=rank * len(a), inputs=inputs)
    stacks = list(zip(starts, b, strict=True))
    shrunk = lora_shrink(x, a, groups)
    return x, a, Expansion(shrunk, stacks, slots, groups, is_beside=True)


@pytest.mark.parametrize("rank", [8, 24])
@pytest.mark.parametrize("inputs", [100, 300])
def test_a_row_does_not_mind_who_shares_its_adapter(
    rank: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit; 300 inputs are summed in two parts."""
    monkeypatch.setattr(triton_groups, "_PART", 128)
    count = 20
    slots = mixture("mixed", count).to(tensor(0, 1).device)
    starts = {0: 70, 70: 30}

    def computed(part: slice) -> torch.Tensor:
        own = slots[part]
        x, a, _ = adapted(count, rank, starts, inputs, slots)
        groups = group_rows(own, 4, ranks=2 * rank, inputs=inputs)
        _, _, expansion = adapted(1, rank, starts, inputs, own[:1])
        shrunk = lora_shrink(x[part], a, groups).clone()
        y = tensor(3, count, 100)[part].clone()
        lora_expand_add(y, dataclasses.replace(expansion, shrunk=shrunk, slots=own, groups=groups))
        return torch.cat([shrunk.flatten(1), y], 1)

    assert all_equal(computed, count)


# Rows; and of a tile: rows, outputs, inputs and pieces of the inputs.
TILES = {
    "row": (1, None),
    "few": (5, (16, 64, 128, 1)),
    "pieces": (20, (32, 64, 128, 2)),
    "many": (7, None),
}


@pytest.mark.parametrize("rank", [8, 16, 72])
@pytest.mark.parametrize("starts", [{0: 96}, {0: 40, 56: 40}, {0: 48, 48: 24, 72: 24}], ids=str)
@pytest.mark.parametrize("way", TILES)
def test_a_product_adds_its_adapters(
    way: str, starts: dict[int, int], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a new tensor and to a residual: a single row, tiles, pieces of a sum, and torch."""
    count, sizes = TILES[way]
    tile: Any = Tile(0, 4, 256, 1, 4, 1) if way == "row" else sizes and Tile(*sizes, 4, 3)
    monkeypatch.setattr(quantised_product, "tile_of", lambda *_: tile)
    slots = rows(*([3, 0, 1, 1, 2] * 4)[:count])
    x, a, expansion = adapted(count, rank, starts, 256, slots)
    weight, bias, residual = tensor(1, 96, 256) / 16, tensor(2, 96), tensor(3, count, 96)
    expected = x @ weight.T + bias
    wanted = dataclasses.replace(expansion, shrunk=torch_kernels.lora_shrink(x, a, slots))
    torch_kernels.lora_expand_add(expected, wanted)
    options = {"bias": bias, "expansion": expansion}
    found = quantised_product.plain_product(x, weight, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    expected += residual
    found = quantised_product.plain_product(x, weight, residual=residual, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("starts", [{0: 52, 52: 52}, {0: 52}, {52: 52}], ids=str)
@pytest.mark.parametrize("way", TILES)
def test_a_gated_product_adds_its_adapters(
    way: str, starts: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gates and values take turns in a tile; 52 of each are no whole number of tiles."""
    count, sizes = TILES[way]
    tile: Any = Tile(0, 4, 256, 1, 4, 1) if way == "row" else sizes and Tile(*sizes, 4, 3)
    monkeypatch.setattr(quantised_product, "tile_of", lambda *_: tile)
    slots = rows(*([3, 0, 1, 1, 2] * 4)[:count])
    x, a, expansion = adapted(count, 16, starts, 256, slots)
    weight = tensor(1, 104, 256) / 16
    expected = x @ weight.T
    wanted = dataclasses.replace(expansion, shrunk=torch_kernels.lora_shrink(x, a, slots))
    torch_kernels.lora_expand_add(expected, wanted)
    expected = ops.gated_activation_torch(expected, "silu")
    found = quantised_product.plain_product(x, weight, activation="silu", expansion=expansion)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
