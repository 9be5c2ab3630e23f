"""The kernels that keep one order of sums: what they compute, and that no row minds the others.

On a GPU: `python -m pytest tests/deployments/engine/kernels/test_triton_linear.py`. Without one, in
Triton's interpreter: TRITON_INTERPRET=1 in front of the same command.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from deployments.engine.kernels import ops
from deployments.engine.kernels.ops import Expansion, HeadNorm, Rope, Segment, prompt_blocks
from tests.deployments.engine.kernels.test_kernels import (
    DEVICE,
    FUSED,
    TOLERANCE,
    needs_kernels,
    tensor,
)

if FUSED:
    from deployments.engine.kernels import (
        triton_attention,
        triton_linear,
        triton_lora,
        triton_prefill,
    )

pytestmark = needs_kernels
BIG = DEVICE == "cuda"
# The interpreter multiplies tiles of bfloat16 as integers.
DTYPES = [torch.float32, torch.bfloat16] if BIG else [torch.float32]
COUNTS = (1, 2, 3, 8, 17, 64, 65, 200, 257, 600) if BIG else (1, 3, 64)
# One sum in one part, and in two or four.
SHAPES = [(6144, 2048), (2048, 5120), (2048, 8192), (100, 70)] if BIG else [(70, 100), (40, 4100)]


@pytest.fixture(autouse=True)
def products_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU computes each element of a tile alike. The interpreter's numpy does not: it chooses by
    an element's place in the tile."""

    def matmul(a: Any, b: Any, **_: Any) -> Any:
        out = np.zeros((len(a), b.shape[1]), np.float32)
        for k in range(a.shape[1]):
            out += a[:, k : k + 1].astype(np.float32) * b[k : k + 1].astype(np.float32)
        return out

    if not BIG:
        monkeypatch.setattr(np, "matmul", matmul)


def all_equal(compute: Callable[[slice], torch.Tensor], rows: int) -> bool:
    """Whether each part of the rows gives what all of them give together."""
    whole = compute(slice(0, rows))
    parts = [slice(0, n) for n in COUNTS if n < rows]
    parts += [slice(rows - n, rows) for n in COUNTS if n < rows]
    return all(torch.equal(compute(part), whole[part]) for part in parts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_is_torchs_and_no_row_minds_the_others(
    shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, inputs = shape
    rows = 1030 if BIG else 67
    x, bias = tensor(0, rows, inputs, dtype=dtype), tensor(1, outputs, dtype=dtype)
    weight = (tensor(2, outputs, inputs) / inputs**0.5).to(dtype)
    residual = tensor(3, rows, outputs, dtype=dtype)

    def added(part: slice) -> torch.Tensor:
        return triton_linear.linear(x[part], weight, bias, add_to=residual[part].clone())

    found = added(slice(0, rows))
    wanted = F.linear(x.float(), weight.float(), bias.float()) + residual.float()
    assert (found.float() - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    assert all_equal(added, rows)
    assert all_equal(lambda part: triton_linear.linear(x[part], weight), rows)
    monkeypatch.setattr(triton_linear, "_ROWS_IN_PARALLEL", 0)
    assert torch.equal(added(slice(0, rows)), found), "one program for all parts of a sum"


def test_a_sum_that_is_cut_by_the_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = tensor(0, 67, 4100), tensor(1, 40, 4100)
    assert all_equal(lambda part: triton_linear.linear(x[part], weight), 67)
    tilings = iter([(32, 2)] + [(32, 1)] * 100)
    monkeypatch.setattr(triton_linear, "tiling", lambda *_: next(tilings))
    assert not all_equal(lambda part: triton_linear.linear(x[part], weight), 67)


def test_a_weights_shape_alone_decides_how_a_sum_is_cut() -> None:
    shapes = [(6144, 2048), (2048, 2048), (2048, 5120), (2048, 8192), (128256, 2048)]
    assert [triton_linear.tiling(*shape) for shape in shapes] == [
        (64, 1),
        (32, 1),
        (32, 2),
        (32, 4),
        (64, 1),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_is_the_same_with_adapters_and_without(dtype: torch.dtype) -> None:
    """Whatever ranks and modules the pool holds at the time."""
    x, weight = tensor(0, 9, 1100, dtype=dtype) * 4, tensor(1, 1100, dtype=dtype)
    normed = triton_lora.rms_norm_rows(x, weight, 1e-6)
    wanted = F.rms_norm(x.float(), (1100,), weight.float(), 1e-6)
    assert (normed.float() - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    assert all_equal(lambda part: triton_lora.rms_norm_rows(x[part], weight, 1e-6), 9)
    slots = torch.zeros(9, dtype=torch.long, device=DEVICE)
    for rank in (8, 64):
        for modules in (1, 2, 3):
            stacks = [tensor(i, 2, rank, 1100, dtype=dtype) for i in range(modules)]
            both, _ = triton_lora.norm_shrink(x, weight, 1e-6, stacks, slots)
            assert torch.equal(both, normed), (rank, modules)


def test_heads_are_normed_together_as_torch_does() -> None:
    whole, weight = tensor(0, 5, 7, 24), tensor(1, 4, 24)
    expected, found = whole.clone(), whole.clone()
    ops.normalise_torch_(expected[:, 1:5], weight, 1e-5, (-2, -1))
    triton_lora.normalise_(found[:, 1:5], weight, 1e-5)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("heads", "dim", "rotated"), [(40, 128, 128), (3, 24, 24), (9, 96, 48)])
def test_heads_are_rotated_as_torch_does(
    heads: int, dim: int, rotated: int, has_norm: bool, dtype: torch.dtype
) -> None:
    whole = tensor(0, 7, heads + 2, dim, dtype=dtype)
    norm = HeadNorm(tensor(1, heads, dim, dtype=dtype), 0.3) if has_norm else None
    rope = Rope(tensor(2, 7, rotated, dtype=dtype), tensor(3, 7, rotated, dtype=dtype))
    expected, found = whole.clone(), whole.clone()
    if norm is not None:
        ops.normalise_torch_(expected[:, 1:-1], norm.weight, norm.eps, (-1,))
    rope.apply_rotary_(expected[:, 1:-1])
    triton_prefill.rotate_(found[:, 1:-1], norm, rope)
    assert _distance(found, expected) < TOLERANCE[dtype]
    assert torch.equal(found[:, [0, -1]], whole[:, [0, -1]])
    if norm is not None:
        expected, found = whole.clone(), whole.clone()
        ops.normalise_torch_(expected[:, 1:-1], norm.weight, norm.eps, (-1,))
        triton_prefill.rotate_(found[:, 1:-1], norm, None)
        assert _distance(found, expected) < TOLERANCE[dtype]


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("groups", [1, 3])
def test_decode_attention_of_a_row_minds_nothing_else(groups: int) -> None:
    """Not the number of rows, and not the largest rank in the pool."""
    heads, dim, size = 2, 16, 300 if BIG else 40
    rows = 64 if BIG else 4
    dtype = torch.bfloat16 if BIG else torch.float32
    kv = tensor(0, rows * size, 2, heads, dim, dtype=dtype)
    qkv = tensor(1, rows, (groups + 2) * heads, dim, dtype=dtype)
    starts = torch.arange(rows, device=DEVICE) * size
    lengths = (torch.arange(rows, device=DEVICE) * 37) % (size - 2) + 1
    slots = torch.arange(rows, device=DEVICE) % 3
    widths = (groups * heads * dim, heads * dim, heads * dim)
    firsts = (0, widths[0], widths[0] + widths[1])
    angles = tensor(2, size, dim // 2)
    cos, sin = (f(angles) for f in (torch.cos, torch.sin))
    turned = Rope(torch.cat([cos, cos], 1).to(dtype), torch.cat([-sin, sin], 1).to(dtype))
    rope = None if groups == 1 else turned

    def attended(part: slice, rank: int = 8) -> torch.Tensor:
        shrunk = F.pad(tensor(3, rows, 3, 8), (0, rank - 8))
        stacks = []
        for i, (first, width) in enumerate(zip(firsts, widths, strict=True)):
            stack = F.pad(tensor(4 + i, 3, 8, width, dtype=dtype) * 0.1, (0, 0, 0, rank - 8))
            stack[0] = 0
            stacks.append((first, stack))
        return triton_attention.decode_attention(
            qkv[part].clone(),
            Expansion(shrunk[part], stacks, slots[part]),
            kv.clone(),
            starts[part],
            lengths[part],
            bias=None,
            rope=rope,
            scale=0.25,
            is_invariant=True,
        )

    assert all_equal(attended, rows)
    for rank in (16, 72):
        assert torch.equal(attended(slice(0, rows), rank), attended(slice(0, rows)))


@pytest.mark.parametrize("window", [None, 20])
def test_a_prompt_may_be_read_in_any_pieces(window: int | None) -> None:
    tokens, heads, dim = 300 if BIG else 70, 2, 16
    dtype = torch.bfloat16 if BIG else torch.float32
    q = tensor(0, tokens, 2 * heads, dim, dtype=dtype)
    keys_values = tensor(1, tokens, 2, heads, dim, dtype=dtype)

    def piece(first: int, last: int) -> torch.Tensor:
        blocks = prompt_blocks([Segment(0, last - first, first, 0, last)]).to(DEVICE)
        return triton_prefill.prefill_attention(
            q[first:last], keys_values, blocks=blocks, scale=0.2, is_causal=True, window=window
        )

    whole = piece(0, tokens)
    for size in (16, 37, 64):
        pieces = [piece(at, min(tokens, at + size)) for at in range(0, tokens, size)]
        assert torch.equal(torch.cat(pieces), whole)
