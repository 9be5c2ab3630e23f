"""Rows grouped by adapter: the groups, what is multiplied by them, and products that add it.

As test_kernels.py: on a GPU, or with TRITON_INTERPRET=1 in front of pytest.
"""

from typing import Any

import pytest
import torch

from deployments.engine.kernels import ops
from deployments.engine.kernels.ops import Expansion
from tests.deployments.engine.kernels import torch_kernels
from tests.deployments.engine.kernels.test_kernels import (
    DEVICE,
    FUSED,
    TOLERANCE,
    needs_kernels,
    rows,
)
from tests.deployments.engine.kernels.test_kernels import tensor as tensor_of
from tests.deployments.engine.kernels.test_triton_linear import all_equal, products_in_order

if FUSED:
    from deployments.engine.kernels import quantised_product, quantised_tiles, triton_groups
    from deployments.engine.kernels.quantised_product import plain_product
    from deployments.engine.kernels.quantised_tiles import Tile
    from deployments.engine.kernels.triton_grouped_lora import (
        lora_expand_add,
        lora_expand_gated,
        lora_shrink,
    )
    from deployments.engine.kernels.triton_groups import group_rows

pytestmark = needs_kernels
__all__ = ["products_in_order"]  # a fixture of every test here


# As it is served; the interpreter multiplies tiles of bfloat16 as integers.
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def tensor(seed: int, *shape: int) -> torch.Tensor:
    return tensor_of(seed, *shape, dtype=DTYPE)


def distance(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true.double()).norm() / true.double().norm())


def mixture(kind: str, count: int) -> torch.Tensor:
    if kind == "base":
        return torch.zeros(count, dtype=torch.long)
    if kind == "each its own":
        return torch.arange(count).flip(0)
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 4, (count,), generator=generator)


@pytest.mark.parametrize("kind", ["base", "each its own", "mixed"])
@pytest.mark.parametrize("count", [1, 2, 17, 64, 65, 130, 300, 1100])
def test_rows_are_grouped_by_slot(kind: str, count: int) -> None:
    slots = mixture(kind, count)
    num_slots = 4 if kind == "mixed" else count
    found = group_rows(slots.to(DEVICE), num_slots, ranks=8, inputs=8)
    assert found.tile_rows == (16 if count <= 256 else 32 if count <= 1000 else 64)
    invariant = group_rows(slots.to(DEVICE), num_slots, ranks=8, inputs=8, is_invariant=True)
    assert invariant.tile_rows == min(found.tile_rows, 32), "tiles with another order of sums"
    order, tiles, active = torch_kernels.group_rows(slots, found.tile_rows)
    assert torch.equal(found.order.cpu().long(), order)
    filled = found.tiles.cpu()[found.tiles.cpu()[:, 2] > 0]
    assert filled.tolist() == tiles
    assert bool((found.tiles[len(tiles) :, 2] == 0).all())
    assert found.active[: 1 + len(active)].tolist() == [len(active), *active]


class Adapted:
    """Inputs x (count, in) of rows with these slots, and adapters of modules of a layer.

    starts: first column -> columns.
    """

    def __init__(self, slots: torch.Tensor, rank: int, starts: dict[int, int], inputs: int) -> None:
        self.slots, self.x = slots, tensor(0, len(slots), inputs)
        self.a = [tensor(10 + i, 4, rank, inputs) / inputs**0.5 for i in range(len(starts))]
        b = [tensor(20 + i, 4, rank, n) * 0.3 for i, n in enumerate(starts.values())]
        for stack in (*self.a, *b):
            stack[0] = 0
        self.stacks = list(zip(starts, b, strict=True))
        self.ranks = rank * len(starts)

    def expansion(self, part: slice = slice(None)) -> Expansion:
        """Return what is added to a product that is launched next."""
        x, slots = self.x[part], self.slots[part]
        groups = group_rows(slots, 4, ranks=self.ranks, inputs=x.shape[1])
        shrunk = lora_shrink(x, self.a, groups)
        return Expansion(shrunk, self.stacks, slots, groups, is_beside=True)

    def wanted(self, product: torch.Tensor) -> torch.Tensor:
        shrunk = torch_kernels.lora_shrink(self.x, self.a, self.slots)
        torch_kernels.lora_expand_add(product, Expansion(shrunk, self.stacks, self.slots))
        return product


@pytest.mark.parametrize("rank", [8, 24, 72])
@pytest.mark.parametrize("starts", [{0: 100}, {0: 70, 70: 30}, {0: 48, 48: 24, 72: 28}], ids=str)
def test_large_tiles(rank: int, starts: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many rows: all modules' ranks at once, and fewer parts of a sum."""
    monkeypatch.setattr(triton_groups, "_FEW_ROWS", 4)
    monkeypatch.setattr(triton_groups, "_MANY_ROWS", 8)
    monkeypatch.setattr(quantised_tiles, "_PART", 32)
    count = 150
    slots = mixture("mixed", count).to(DEVICE)
    adapted, y = Adapted(slots, rank, starts, 700), tensor(3, count, 100)
    wanted, expansion = adapted.wanted(y.clone()), adapted.expansion()
    assert expansion.groups is not None
    assert expansion.groups.tile_rows == 64
    lora_expand_add(y, expansion)
    assert distance(y, wanted) < TOLERANCE[DTYPE]
    if len(starts) == 1:
        gated = lora_expand_gated(tensor(3, count, 100), expansion, "silu")
        assert distance(gated, ops.gated_activation_torch(wanted, "silu")) < 3 * TOLERANCE[DTYPE]


@pytest.mark.parametrize("rank", [8, 24])
@pytest.mark.parametrize("inputs", [100, 300])
def test_a_row_does_not_mind_who_shares_its_adapter(
    rank: int, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit; 300 inputs are summed in two parts."""
    monkeypatch.setattr(quantised_tiles, "_PART", 128)
    count = 20
    slots = mixture("mixed", count).to(DEVICE)
    adapted, added_to = Adapted(slots, rank, {0: 70, 70: 30}, inputs), tensor(3, count, 100)

    def computed(part: slice) -> torch.Tensor:
        y, expansion = added_to[part].clone(), adapted.expansion(part)
        lora_expand_add(y, expansion)
        return torch.cat([expansion.shrunk.flatten(1), y.float()], 1)

    assert all_equal(computed, count)


# Rows; and of a tile: rows, outputs, inputs and pieces of the inputs.
TILES = {
    "row": (1, None),
    "few": (5, (16, 64, 128, 1)),
    "pieces": (20, (32, 64, 128, 2)),
    "many": (7, None),
}


@pytest.mark.parametrize("rank", [8, 24, 136])
@pytest.mark.parametrize("starts", [{0: 96}, {0: 40, 56: 40}, {0: 48, 48: 24, 72: 24}], ids=str)
@pytest.mark.parametrize("way", TILES)
def test_a_product_adds_its_adapters(
    way: str, starts: dict[int, int], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a new tensor and to a residual: a single row, tiles, pieces of a sum, and torch."""
    count, sizes = TILES[way]
    tile: Any = Tile(0, 4, 256, 1, 4, 1) if way == "row" else sizes and Tile(*sizes, 4, 3)
    monkeypatch.setattr(quantised_product, "tile_of", lambda *_: tile)
    adapted = Adapted(rows(*([3, 0, 1, 1, 2] * 4)[:count]), rank, starts, 256)
    x, weight, bias = adapted.x, tensor(1, 96, 256) / 16, tensor(2, 96)
    residual = tensor(3, count, 96)
    expected = adapted.wanted(x @ weight.T + bias)
    both = expected + residual
    found = plain_product(x, weight, bias=bias, expansion=adapted.expansion())
    assert distance(found, expected) < TOLERANCE[DTYPE]
    expansion = adapted.expansion()
    found = plain_product(x, weight, bias=bias, residual=residual, expansion=expansion)
    assert distance(found, both) < TOLERANCE[DTYPE]


@pytest.mark.parametrize("starts", [{0: 52, 52: 52}, {0: 52}, {52: 52}, {0: 104}], ids=str)
@pytest.mark.parametrize("way", TILES)
def test_a_gated_product_adds_its_adapters(
    way: str, starts: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gates and values take turns in a tile; 52 of each are no whole number of tiles."""
    count, sizes = TILES[way]
    tile: Any = Tile(0, 4, 256, 1, 4, 1) if way == "row" else sizes and Tile(*sizes, 4, 3)
    monkeypatch.setattr(quantised_product, "tile_of", lambda *_: tile)
    adapted = Adapted(rows(*([3, 0, 1, 1, 2] * 4)[:count]), 16, starts, 256)
    x, weight = adapted.x, tensor(1, 104, 256) / 16
    expected = ops.gated_activation_torch(adapted.wanted(x @ weight.T), "silu")
    found = plain_product(x, weight, activation="silu", expansion=adapted.expansion())
    assert distance(found, expected) < TOLERANCE[DTYPE]
