"""Products with quantised weights against their twins, where Triton's kernels run.

As test_kernels.py: on a GPU, or with TRITON_INTERPRET=1 in front of pytest.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deployments.engine.kernels import ops
from deployments.engine.kernels.backend import are_fused, counters
from deployments.engine.kernels.ops import Shrink
from deployments.engine.quantised.interleaved import interleaved
from deployments.engine.quantised.weight import KINDS, Kind, quantise
from tests.deployments.engine.kernels import torch_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = (
    torch.bfloat16 if DEVICE == "cuda" else torch.float32
)  # the interpreter's dot has no bfloat16
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}[DTYPE]
if are_fused(DEVICE):
    from deployments.engine.kernels import quantised_product, triton_lora
    from deployments.engine.kernels.quantised_tiles import Tile
    from deployments.engine.kernels.triton_groups import group_rows
else:
    pytest.skip("needs a GPU with Triton, or TRITON_INTERPRET=1", allow_module_level=True)

TILES = {
    "whole": Tile(16, 64, 128, 1, 4, 3),
    "pieces": Tile(16, 64, 128, 3, 4, 3),
    "more pieces than inputs": Tile(16, 64, 128, 8, 4, 3),
    "wide": Tile(64, 128, 256, 2, 8, 2),
}
SHAPES = [(100, 128), (64, 576), (70, 1024)]
Choose = Callable[[Any], None]


def tensor(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, DTYPE)


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Choose:
    """Let every product take this tile."""

    def chosen(tile: Any) -> None:
        monkeypatch.setattr(quantised_product, "tile_of", lambda *about, **more: tile)

    return chosen


def weight_of(kind: str, shape: tuple[int, int]) -> Any:
    return quantise(tensor(7, *shape), kind) if kind != "plain" else tensor(7, *shape)  # type: ignore[arg-type]


def product(weight: Any, x: torch.Tensor, **more: Any) -> torch.Tensor:
    if isinstance(weight, torch.Tensor):
        return quantised_product.plain_product(x, weight, **more)
    return quantised_product.product(x, interleaved(weight), **more)


def wanted(weight: Any, x: torch.Tensor) -> torch.Tensor:
    plain = weight if isinstance(weight, torch.Tensor) else weight.dequantised(torch.float32)
    return x.double() @ plain.double().T


def distance(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile", TILES)
def test_a_product_of_few_rows(
    kind: str, shape: tuple[int, int], tile: str, choose: Choose
) -> None:
    choose(TILES[tile])
    weight = weight_of(kind, shape)
    for rows in (1, 5, 17):
        x = tensor(rows, rows, shape[1])
        assert distance(product(weight, x), wanted(weight, x)) < TOLERANCE
    assert_no_counts(x)


def assert_no_counts(x: torch.Tensor) -> None:
    counted = counters("product", quantised_product._MOST_TILES, x.device)
    assert not counted.any(), "the next product would add too few pieces"


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("modules", "rank"), [(1, 16), (2, 8), (3, 24)])
@pytest.mark.parametrize("adds", [False, True])
def test_a_product_takes_adapters_a_along(
    kind: str, tile: str, modules: int, rank: int, adds: bool, choose: Choose
) -> None:
    """Rows of no adapter, of one, of three: what A makes of each is what a product alone makes."""
    choose(TILES[tile])
    weight = weight_of(kind, (100, 320))
    own = weight if kind == "plain" else interleaved(weight)
    stacks = [tensor(5 + i, 4, rank, 320) for i in range(modules)]
    for stack in stacks:
        stack[0] = 0
    for slots in ([0, 0, 0], [2] * 5, [3, 0, 1, 2, 3, 3, 0] * 3):
        x, residual = tensor(1, len(slots), 320), tensor(2, len(slots), 100)
        of_rows = torch.tensor(slots, device=DEVICE)
        groups = group_rows(of_rows, 4, ranks=modules * rank, inputs=320)
        shrink = Shrink(stacks, of_rows, groups.active)
        true = wanted(weight, x) + (residual.double() if adds else 0)
        found, shrunk = quantised_product.product_with_shrink(
            x, own, shrink, residual=residual if adds else None
        )
        assert distance(found, true) < 2 * TOLERANCE
        assert adds == (found is residual)
        assert shrunk is not None
        expected = torch_kernels.lora_shrink(x, stacks, of_rows)
        if any(slots):
            assert distance(shrunk, expected.double()) < 2 * TOLERANCE
        assert not shrunk[of_rows == 0].any()
        assert_no_counts(x)


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile", [Tile(0, 4, 256, 1, 4, 2), Tile(0, 2, 1024, 1, 4, 1)], ids=str)
@pytest.mark.parametrize("dtype", {DTYPE, torch.bfloat16})
def test_a_product_of_one_row(
    kind: str, shape: tuple[int, int], tile: Any, dtype: torch.dtype, choose: Choose
) -> None:
    choose(tile)
    weight, x = weight_of(kind, shape), tensor(1, 1, shape[1]).to(dtype)
    if kind == "plain":
        weight = weight.to(dtype)
    tolerance = TOLERANCE if dtype == DTYPE else 1e-2  # the interpreter cuts off, does not round
    assert distance(product(weight, x), wanted(weight, x)) < tolerance


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
@pytest.mark.parametrize("slot", [None, 0, 2])
@pytest.mark.parametrize("activation", [None, "gelu_new"])
@pytest.mark.parametrize("tile", [Tile(0, 4, 128, 1, 4, 2), Tile(0, 8, 512, 1, 4, 1)], ids=str)
def test_the_norm_of_one_row_and_its_product(
    kind: str, slot: int | None, activation: str | None, tile: Any, choose: Choose
) -> None:
    """With what an adapter's A makes of the norm, of two modules with eight ranks; slot 0: none."""
    choose(tile)
    weight, x, gains = weight_of(kind, (72, 320)), tensor(1, 1, 320) * 3, tensor(2, 320)
    bias = tensor(4, 72)
    stacks = [tensor(5, 3, 8, 320), tensor(6, 3, 8, 320)] if slot is not None else []
    for stack in stacks:
        stack[0] = 0
    slots = torch.tensor([slot or 0], device=DEVICE)
    shrink = Shrink(stacks, slots, torch.zeros(2, dtype=torch.int32, device=DEVICE))
    own = weight if kind == "plain" else interleaved(weight)
    found, shrunk = quantised_product.product_with_shrink(
        x, own, shrink if stacks else None, norm=(gains, 1e-3), bias=bias, activation=activation
    )
    normed = F.rms_norm(x.double(), (320,), gains.double(), 1e-3)
    y = wanted(weight, normed) + bias.double()
    if activation is not None:
        y = ops.gated_activation_torch(y, activation)
    assert distance(found, y) < 3 * TOLERANCE
    assert (shrunk is None) == (slot is None)
    for module, stack in enumerate(stacks):
        assert shrunk is not None
        true = normed @ stack[slot].double().T
        assert float((shrunk[:, module].double() - true).norm()) <= TOLERANCE * float(true.norm())


@pytest.mark.parametrize("inputs", [320, 4096, 4480])
@pytest.mark.parametrize("slot", [0, 2])
def test_a_long_rows_product_takes_a_along(inputs: int, slot: int, choose: Choose) -> None:
    """Of one module, without a norm; more inputs than a program holds at once are read in turn."""
    choose(Tile(0, 4, 512, 1, 4, 1))
    weight, x, residual = tensor(0, 6, inputs), tensor(1, 1, inputs), tensor(2, 1, 6)
    stack = tensor(3, 3, 8, inputs)
    stack[0] = 0
    slots = torch.tensor([slot], device=DEVICE)
    shrink = Shrink([stack], slots, torch.zeros(2, dtype=torch.int32, device=DEVICE))
    true = wanted(weight, x) + residual.double()
    found, shrunk = quantised_product.product_with_shrink(x, weight, shrink, residual=residual)
    assert distance(found, true) < 2 * TOLERANCE
    assert shrunk is not None
    expected = torch_kernels.lora_shrink(x, [stack], slots)
    assert float((shrunk - expected).norm()) <= 2 * TOLERANCE * float(expected.norm())


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "tile"),
    [(1, Tile(0, 4, 512, 1, 4, 1)), (5, TILES["whole"]), (5, TILES["pieces"]), (9, None)],
    ids=str,
)
def test_residuals_and_biases(
    kind: str, has_bias: bool, rows: int, tile: Any, choose: Choose
) -> None:
    """Also with torch, from a dequantised copy (None)."""
    choose(tile)
    weight, x, residual = weight_of(kind, (100, 192)), tensor(1, rows, 192), tensor(2, rows, 100)
    bias = tensor(3, 100) if has_bias else None
    added = bias.double() if bias is not None else 0.0
    true = wanted(weight, x) + added
    assert distance(product(weight, x, bias=bias), true) < 2 * TOLERANCE
    before = residual.double()
    found = product(weight, x, bias=bias, residual=residual)
    assert found is residual
    assert distance(found, true + before) < 2 * TOLERANCE


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
@pytest.mark.parametrize("activation", ["silu", "gelu_new"])
@pytest.mark.parametrize(
    ("rows", "tile"),
    [(1, Tile(0, 4, 512, 1, 4, 1)), (5, TILES["whole"]), (5, TILES["pieces"]), (9, None)],
    ids=str,
)
def test_gated_products(kind: str, activation: str, rows: int, tile: Any, choose: Choose) -> None:
    """Gates and values lie in halves of the weight, of no round number of rows."""
    choose(tile)
    weight, x, bias = weight_of(kind, (2 * 52, 192)), tensor(1, rows, 192), tensor(3, 2 * 52)
    found = product(weight, x, bias=bias, activation=activation)
    y = (wanted(weight, x) + bias.double()).to(DTYPE)
    assert distance(found, ops.gated_activation_torch(y, activation).double()) < 3 * TOLERANCE


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """To the bit: from two rows on, sums go in one order, whatever their number.

    The interpreter's own sums depend on the size of a tile, so its rows share one.
    """
    most = 64 if DEVICE == "cuda" else 16
    for kind in (*KINDS, "plain"):
        for shape in ((100, 1024), (4200, 128)):
            weight, x = weight_of(kind, shape), tensor(1, most, shape[1])
            whole = product(weight, x)
            for rows in (2, 9, most // 2 + 1, most - 1):
                assert torch.equal(product(weight, x[:rows]), whole[:rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [64, 576, 1088])
@pytest.mark.parametrize("dtype", {torch.float32, DTYPE})
def test_a_dequantised_copy_is_the_twins(kind: Kind, columns: int, dtype: torch.dtype) -> None:
    weight = quantise(tensor(7, 100, columns), kind)
    copy = quantised_product.dequantise(interleaved(weight), slice(3, 90), dtype)
    assert distance(copy, weight.dequantised(dtype)[3:90].double()) < 1e-4


def test_many_rows_and_outputs_are_multiplied_in_parts(
    choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(None)
    monkeypatch.setattr(quantised_product, "DEQUANTISED", 30 * 128)
    for kind in KINDS:
        weight, x = weight_of(kind, (100, 128)), tensor(1, 33, 128)
        bias, residual = tensor(2, 100), tensor(3, 33, 100)
        true = wanted(weight, x) + bias.double()
        assert distance(product(weight, x, bias=bias), true) < TOLERANCE
        before = residual.double()
        assert distance(product(weight, x, bias=bias, residual=residual), true + before) < TOLERANCE


@pytest.mark.parametrize("kind", [*KINDS, "plain"])
def test_every_size_has_a_tile_that_fits(kind: str) -> None:
    for outputs, inputs in [(256, 64), (6144, 2048), (2048, 5120), (128256, 2048), (32128, 2048)]:
        for rows in (1, 2, 15, 16, 33, 64, 65, 100, 192):
            tile = quantised_product.tile_of(kind, rows, outputs, inputs)
            step = 64 if kind == "plain" else 128
            assert tile is None or (tile.bk % step == 0 and tile.num_warps in (4, 8))
            if tile is not None and tile.bm:
                assert tile.splits * tile.bk < inputs + tile.bk or tile.splits == 1
    assert quantised_product.tile_of(kind, 2000, 2048, 2048) is None


def test_the_norm_of_rows_is_the_norm() -> None:
    x, weight = tensor(0, 5, 1100) * 4, tensor(1, 1100)
    found = triton_lora.rms_norm_rows(x, weight, 1e-6)
    true = F.rms_norm(x.double(), (1100,), weight.double(), 1e-6)
    assert distance(found, true) < TOLERANCE
