"""The torch versions against plain arithmetic, and the Triton kernels against them where they run.

On a GPU: `python -m pytest tests/deployments/engine/kernels/test_kernels.py`. Without one, the
kernels run in Triton's interpreter: TRITON_INTERPRET=1 in front of the same command.
"""

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from deployments.engine.attention.prefill import TorchPrefillAttention
from deployments.engine.kernels import ops
from deployments.engine.kernels.backend import are_fused
from deployments.engine.kernels.ops import Expansion, HeadNorm, Rope, Segment, prompt_blocks
from deployments.engine.lora.layers import LoraStack
from tests.deployments.engine.kernels import torch_kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = are_fused(DEVICE)
if FUSED:
    from deployments.engine.kernels import (
        triton_attention,
        triton_grouped_lora,
        triton_groups,
        triton_lora,
        triton_pick,
        triton_prefill,
    )
needs_kernels = pytest.mark.skipif(
    not FUSED, reason="needs a GPU with Triton, or TRITON_INTERPRET=1 and Triton"
)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def tensor(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, device=DEVICE)


@pytest.mark.parametrize("groups", [1, 3])
def test_torch_attention_is_attention(groups: int) -> None:
    """The newest key and value count, and are kept; a row sees nothing of its neighbours."""
    qkv, kv_cache = tensor(0, 3, 2 * groups + 4, 8), tensor(1, 40, 2, 2, 8)
    starts, lengths = rows(0, 12, 30), rows(5, 12, 0)
    bias = tensor(2, 2, 20) if groups == 1 else None
    expected = kv_cache.clone()
    expected[starts + lengths] = qkv[:, 2 * groups :].view(3, 2, 2, 8)
    out = torch_kernels.decode_attention(qkv, None, kv_cache, starts, lengths, bias=bias, scale=0.3)
    assert torch.equal(kv_cache, expected)
    for row, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        kv = kv_cache[start : start + length + 1].permute(1, 2, 0, 3)
        added = None if bias is None else bias[:, : length + 1].flip(-1)[:, None]
        q = qkv[row, : 2 * groups].view(2, groups, 8)
        attended = F.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=added, scale=0.3)
        torch.testing.assert_close(out[row], attended.reshape(-1))


def test_rope_rotates_as_transformers_does() -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    angles = tensor(0, 6, 4)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    rope = Rope(cos, torch.cat([-sin[:, :4], sin[:, 4:]], -1))
    x, positions = tensor(1, 3, 2, 8), rows(5, 0, 2)
    there = apply_rotary_pos_emb(x, x, cos[positions], sin[positions], unsqueeze_dim=1)[0]
    rope.at(positions).apply_rotary_(x)
    torch.testing.assert_close(x, there)


def test_the_torch_versions_are_lora() -> None:
    x, slots, wide = tensor(0, 4, 12), rows(2, 0, 1, 2), tensor(3, 4, 30)
    parts = [
        (5, tensor(1, 3, 8, 12), tensor(2, 3, 8, 10)),
        (20, tensor(4, 3, 8, 12), tensor(5, 3, 8, 6)),
    ]
    for _, a, b in parts:
        a[0], b[0] = 0, 0
    expected = wide.clone()
    for row, slot in enumerate(slots.tolist()):
        for start, a, b in parts:
            expected[row, start : start + b.shape[2]] += (x[row] @ a[slot].T) @ b[slot]
    shrunk = torch_kernels.lora_shrink(x, [a for _, a, _ in parts], slots)
    stacks = [(start, b) for start, _, b in parts]
    torch_kernels.lora_expand_add(wide, Expansion(shrunk, stacks, slots))
    torch.testing.assert_close(wide, expected)


def expansion(width: int, columns: dict[int, int], rank: int, dtype: torch.dtype) -> Expansion:
    """Of five rows, one of them the base's. columns: first column -> number of columns."""
    stacks = []
    for i, (start, count) in enumerate(columns.items()):
        assert start + count <= width
        stack = tensor(20 + i, 4, rank, count, dtype=dtype) * 0.2
        stack[0] = 0
        stacks.append((start, stack))
    slots = rows(3, 0, 1, 1, 2)
    groups = None
    if FUSED:
        groups = triton_groups.group_rows(slots, 4, ranks=rank * len(columns), inputs=64)
    return Expansion(tensor(9, 5, len(columns), rank), stacks, slots, groups)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 8, 24, 64, 72])
@pytest.mark.parametrize(
    ("heads", "groups", "dim", "kind"),
    [(4, 1, 64, "bias"), (3, 1, 24, "plain"), (2, 4, 64, "rope"), (2, 1, 24, "rope")],
)
def test_the_decode_kernel_equals_the_torch_version(
    heads: int, groups: int, dim: int, kind: str, rank: int, dtype: torch.dtype
) -> None:
    if DEVICE == "cpu" and (kind == "rope" or rank == 72) and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    kv_cache = tensor(1, 400, 2, heads, dim, dtype=dtype)
    qkv = tensor(0, 5, heads * (groups + 2), dim, dtype=dtype)
    starts, lengths = rows(0, 130, 140, 210, 399), rows(129, 0, 64, 65, 0)
    bias = tensor(2, heads, 140, dtype=dtype) if kind == "bias" else None
    rope = Rope(tensor(3, 140, dim), tensor(4, 140, dim)) if kind == "rope" else None
    queries, width = heads * groups * dim, heads * dim
    columns = {0: queries, queries: width, queries + width: width}
    if rank == 24:
        del columns[queries]  # q and v, as PEFT's own default is
    added = expansion(qkv[0].numel(), columns, rank, dtype) if rank else None
    options = {"bias": bias, "rope": rope, "scale": dim**-0.5}
    torch_cache, torch_qkv = kv_cache.clone(), qkv.clone()
    out = triton_attention.decode_attention(qkv, added, kv_cache, starts, lengths, **options)
    wanted = torch_kernels.decode_attention(
        torch_qkv, added, torch_cache, starts, lengths, **options
    )
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    torch.testing.assert_close(kv_cache, torch_cache, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    untouched = torch.ones(400, dtype=torch.bool, device=DEVICE)
    untouched[starts + lengths] = False
    assert torch.equal(kv_cache[untouched], tensor(1, 400, 2, heads, dim, dtype=dtype)[untouched])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 24])
@pytest.mark.parametrize(
    ("groups", "rotated", "options"),
    [
        (2, 64, {"window": 70}),
        (2, 64, {"softcap": 2.0}),
        (1, 64, {"window": 1, "softcap": 2.0}),
        (4, 48, {}),
        (3, 0, {}),
        (1, 0, {"window": 66}),
        (4, 64, {"norm": torch.bfloat16}),
        (2, 48, {"norm": torch.float32, "window": 70}),
        (1, 0, {"norm": torch.float32}),
    ],
    ids=str,
)
def test_windows_caps_norms_and_partial_rotation_in_the_decode_kernel(
    groups: int, rotated: int, options: dict[str, Any], rank: int, dtype: torch.dtype
) -> None:
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    heads, dim = 2, 64
    kv_cache = tensor(1, 400, 2, heads, dim, dtype=dtype)
    qkv = tensor(0, 5, heads * (groups + 2), dim, dtype=dtype)
    starts, lengths = rows(0, 130, 140, 210, 399), rows(129, 0, 64, 65, 0)
    rope = Rope(tensor(3, 140, rotated), tensor(4, 140, rotated)) if rotated else None
    queries, width = heads * groups * dim, heads * dim
    columns = {0: queries, queries: width, queries + width: width}
    added = expansion(qkv[0].numel(), columns, rank, dtype) if rank else None
    all_options = {"bias": None, "rope": rope, "scale": dim**-0.5, **options}
    if "norm" in options:
        weight = tensor(6, heads * (groups + 1), dim, dtype=options["norm"])
        all_options["norm"] = HeadNorm(weight, 0.5)
    torch_cache, torch_qkv = kv_cache.clone(), qkv.clone()
    out = triton_attention.decode_attention(qkv, added, kv_cache, starts, lengths, **all_options)
    wanted = torch_kernels.decode_attention(
        torch_qkv, added, torch_cache, starts, lengths, **all_options
    )
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    torch.testing.assert_close(kv_cache, torch_cache, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 16, 72])
def test_the_cross_kernel_equals_the_torch_version(rank: int, dtype: torch.dtype) -> None:
    if DEVICE == "cpu" and rank == 72 and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    kv_cache, q = tensor(1, 400, 2, 3, 64, dtype=dtype), tensor(0, 5, 3, 64, dtype=dtype)
    starts, lengths = rows(0, 130, 131, 200, 399), rows(130, 1, 64, 65, 1)
    added = expansion(192, {0: 192}, rank, dtype) if rank else None
    before = kv_cache.clone()
    wanted = torch_kernels.cross_attention(q.clone(), added, kv_cache, starts, lengths, scale=0.125)
    out = triton_attention.cross_attention(q, added, kv_cache, starts, lengths, scale=0.125)
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    assert torch.equal(kv_cache, before)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{"window": 70}, {"softcap": 2.0}, {"window": 5, "softcap": 2.0}], ids=str
)
def test_windows_and_caps_in_the_prefill_kernel(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    q, keys_values = tensor(0, 195, 4, 24, dtype=dtype), tensor(1, 400, 2, 2, 24, dtype=dtype)
    segments = [Segment(0, 1, 0, 3, 1), Segment(1, 64, 70, 100, 134), Segment(65, 130, 0, 9, 130)]
    both = {"scale": 0.2, "is_causal": True, **options}
    blocks = prompt_blocks(segments, 9).to(DEVICE)
    out = triton_prefill.prefill_attention(q, keys_values, blocks=blocks, **both)
    wanted = TorchPrefillAttention(segments)(q, keys_values, **both)
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    plain = TorchPrefillAttention(segments)(q, keys_values, scale=0.2, is_causal=True)
    assert (plain - wanted).norm() / wanted.norm() > 0.05, "the option changes nothing"


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_prefill_kernel_equals_the_torch_version(
    groups: int, is_causal: bool, dtype: torch.dtype
) -> None:
    """Prompts of one token, of a block, of more; with a bias (an encoder), or a chunk that goes
    on behind what its row holds already."""
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    counts = (1, 64, 130)
    heads, dim = 2, 24
    q = tensor(0, sum(counts), heads * groups, dim, dtype=dtype)
    if is_causal:
        keys_values = tensor(1, 400, 2, heads, dim, dtype=dtype)
        segments = [
            Segment(0, 1, 0, 3, 1),
            Segment(1, 64, 70, 100, 134),
            Segment(65, 130, 0, 9, 130),
        ]
        bias = None
    else:
        packed = tensor(1, sum(counts), 3, heads, dim, dtype=dtype)
        keys_values = packed[:, 1:]
        segments = [Segment(0, 1, 0, 0, 1), Segment(1, 64, 0, 1, 64), Segment(65, 130, 0, 65, 130)]
        bias = tensor(2, heads * groups, 2 * 140 - 1, dtype=dtype)
    blocks = prompt_blocks(segments, 9).to(DEVICE)
    options: dict[str, Any] = {"scale": 0.2, "is_causal": is_causal}
    out = triton_prefill.prefill_attention(q, keys_values, blocks=blocks, bias=bias, **options)
    wanted = TorchPrefillAttention(segments)(q, keys_values, bias=bias, **options)
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [8, 64])
@pytest.mark.parametrize("widths", [(300,), (300, 700, 40)])
@pytest.mark.parametrize("rescaled", [(), (0,), (1, 2)])
def test_the_lora_kernels_equal_the_torch_versions(
    widths: tuple[int, ...], rescaled: tuple[int, ...], rank: int, dtype: torch.dtype
) -> None:
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    x, slots = tensor(0, 5, 2200, dtype=dtype), rows(3, 0, 1, 1, 2)
    y = tensor(3, 5, 1200, dtype=dtype)
    a = [tensor(10 + i, 4, rank, 2200, dtype=dtype) for i in range(len(widths))]
    b = [tensor(20 + i, 4, rank, n, dtype=dtype) * 0.1 for i, n in enumerate(widths)]
    for stack in (*a, *b):
        stack[0] = 0
    starts = [100 + sum(widths[:i]) for i in range(len(widths))]
    stacks = list(zip(starts, b, strict=True))
    groups = triton_groups.group_rows(slots, 4, ranks=rank * len(a), inputs=2200)
    shrunk, wanted = (
        triton_grouped_lora.lora_shrink(x, a, groups),
        torch_kernels.lora_shrink(x, a, slots),
    )
    assert shrunk.shape == wanted.shape
    assert (shrunk - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    expected = y.clone()
    untouched = y.clone()
    gains = [tensor(30 + i, 4, n) if i in rescaled else None for i, n in enumerate(widths)]
    for gain in gains:
        if gain is not None:
            gain[0] = 1
    triton_grouped_lora.lora_expand_add(y, Expansion(shrunk, stacks, slots, groups), gains)
    torch_kernels.lora_expand_add(expected, Expansion(shrunk, stacks, slots), gains)
    assert (y - expected).norm() / expected.norm() < TOLERANCE[dtype]
    assert torch.equal(y[:, :100], untouched[:, :100])
    assert torch.equal(y[:, 100 + sum(widths) :], untouched[:, 100 + sum(widths) :])
    assert torch.equal(y[1], untouched[1]), "a row of the base was changed"


def test_the_norm_is_torchs() -> None:
    x, weight = tensor(0, 4, 48) * 5, tensor(1, 48)
    expected = F.rms_norm(x, (48,), weight, 1e-5)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), expected)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_shrink_in_one_equal_the_two(dtype: torch.dtype) -> None:
    x, weight = tensor(0, 5, 1100, dtype=dtype) * 4, tensor(1, 1100, dtype=dtype)
    slots = rows(3, 0, 1, 1, 2)
    stacks = [tensor(10 + i, 4, 16, 1100, dtype=dtype) for i in range(3)]
    for stack in stacks:
        stack[0] = 0
    normed, shrunk = triton_lora.norm_shrink(x, weight, 1e-6, stacks, slots)
    expected = F.rms_norm(x, (1100,), weight, 1e-6)
    assert (normed - expected).norm() / expected.norm() < TOLERANCE[dtype]
    wanted = torch_kernels.lora_shrink(normed, stacks, slots)
    assert (shrunk - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    assert not shrunk[1].any()


@needs_kernels
@pytest.mark.parametrize(
    ("num_rows", "rank", "is_invariant", "are_few"),
    [
        (64, 8, False, True),
        (65, 8, False, True),
        (64, 24, False, True),
        (65, 24, False, False),
        (64, 40, False, False),
        (64, 24, True, False),
        (65, 8, True, True),
    ],
)
def test_the_norms_kernel_takes_few_ranks_and_more_of_few_rows(
    num_rows: int, rank: int, is_invariant: bool, are_few: bool
) -> None:
    """Where no row may depend on their number, it does not either."""
    from deployments.engine.lora.triton_batch import TritonLoraBatch

    stacks = {"q and v": [(0, LoraStack(tensor(1, 3, rank, 4), tensor(2, 3, rank, 4)))] * 2}
    slots = torch.zeros(num_rows, dtype=torch.long, device=DEVICE)
    batch = TritonLoraBatch(stacks, slots, is_invariant=is_invariant)
    assert (batch.few("q and v") is not None) == are_few
    assert batch.few("of no adapter") is None


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["silu", "gelu_new"])
def test_the_gated_kernel_equals_the_torch_version(activation: str, dtype: torch.dtype) -> None:
    x = tensor(0, 3, 2 * 1500, dtype=dtype) * 3
    out = ops.gated_activation(x, activation)
    wanted = ops.gated_activation_torch(x, activation)
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]


def test_without_kernels_the_torch_version_runs() -> None:
    if FUSED or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the kernels run here")
    assert not are_fused("cpu")
    x = tensor(0, 3, 24)
    gate, value = x.chunk(2, -1)
    torch.testing.assert_close(ops.gated_activation(x, "silu"), F.silu(gate) * value)


@needs_kernels
@pytest.mark.parametrize("columns", [70, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_picked_token_is_torchs(columns: int, dtype: torch.dtype) -> None:
    """The first of equals, a NaN before all else, and none that ends an answer that may not."""
    logits = tensor(0, 6, columns, dtype=dtype)
    logits[:, 3] = 50.0
    logits[1, [9, columns - 1]] = 60.0
    logits[2, 5] = torch.nan
    logits[3] = -torch.inf
    ends, blocks = rows(3, 9), torch.tensor([0, 1, 1, 1, 1, 0], device=DEVICE)
    twin, newest, twins_newest = logits.clone(), rows(*[0] * 9), rows(*[0] * 9)
    where = rows(8, 2, 4, 0, 1, 7)
    found = triton_pick.pick(logits, ends, blocks, where, newest)
    assert torch.equal(found, torch_kernels.pick(twin, ends, blocks, where, twins_newest))
    assert torch.equal(newest, twins_newest)
    torch.testing.assert_close(logits, twin, rtol=0, atol=0, equal_nan=True)
