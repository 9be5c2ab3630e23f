"""The kernels of what T5Gemma adds to attention, as test_kernels.py: prompt and answer under one
softmax, attention to a prompt with grouped queries and a cap, windows that look both ways.
"""

from typing import Any

import pytest
import torch

from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.attention.prefill import TorchPrefillAttention
from deployments.engine.kernels import ops
from deployments.engine.kernels.ops import Expansion, Rope, Segment, prompt_blocks
from tests.deployments.engine.kernels import torch_kernels
from tests.deployments.engine.kernels.test_kernels import (
    DEVICE,
    FUSED,
    TOLERANCE,
    expansion,
    needs_kernels,
    rows,
    tensor,
)

if FUSED:
    from deployments.engine.attention.fused import TritonDecodeAttention
    from deployments.engine.kernels import triton_attention, triton_prefill


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 24])
@pytest.mark.parametrize("window", [None, 1, 66])
def test_answer_and_prompt_under_one_softmax_in_the_decode_kernel(
    window: int | None, rank: int, dtype: torch.dtype
) -> None:
    """Prompts of one token and of more than a tile, behind answers of none and of many."""
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    heads, groups, dim = 2, 2, 24
    kv_cache = tensor(1, 700, 2, heads, dim, dtype=dtype)
    qkv = tensor(0, 4, heads * (groups + 2), dim, dtype=dtype)
    starts, lengths = rows(0, 280, 290, 500), rows(129, 0, 64, 1)
    prompts = rows(130, 281, 360, 510), rows(150, 9, 1, 190)
    queries, width = heads * groups * dim, heads * dim
    columns = {0: queries, queries: width, queries + width: width}
    added = expansion(qkv[0].numel(), columns, rank, dtype) if rank else None
    if added is not None:
        added = Expansion(added.shrunk[:4], added.stacks, added.slots[:4])
    rope = Rope(tensor(3, 140, dim), tensor(4, 140, dim))
    options: dict[str, Any] = {
        "bias": None,
        "rope": rope,
        "scale": 0.2,
        "softcap": 3.0,
        "window": window,
    }
    torch_cache, torch_qkv = kv_cache.clone(), qkv.clone()
    wanted = torch_kernels.decode_attention(
        torch_qkv, added, torch_cache, starts, lengths, prompts=prompts, **options
    )
    without = triton_attention.decode_attention(
        qkv.clone(), added, kv_cache.clone(), starts, lengths, **options
    )
    out = triton_attention.decode_attention(
        qkv, added, kv_cache, starts, lengths, prompts=prompts, **options
    )
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    assert (out - without).norm() / wanted.norm() > 0.05, "the prompts change nothing"
    torch.testing.assert_close(kv_cache, torch_cache, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("groups", "softcap"), [(1, 2.0), (3, None), (2, 2.0)])
def test_attention_to_the_prompt_with_groups_and_a_cap(
    groups: int, softcap: float | None, dtype: torch.dtype
) -> None:
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    kv_cache = tensor(1, 400, 2, 3, 64, dtype=dtype)
    q = tensor(0, 5, 3 * groups, 64, dtype=dtype)
    starts, lengths = rows(0, 130, 131, 200, 399), rows(130, 1, 64, 65, 1)
    options: dict[str, Any] = {"scale": 0.125, "softcap": softcap}
    before = kv_cache.clone()
    wanted = torch_kernels.cross_attention(q.clone(), None, kv_cache, starts, lengths, **options)
    cache = KvCache(
        [400], num_layers=1, num_heads=3, head_dim=64, dtype=dtype, device=torch.device(DEVICE)
    )
    cache.layers = [kv_cache]
    attention = TritonDecodeAttention(cache, starts, starts + lengths, rows(0), lengths)
    out = attention.cross_attention(q, None, 0, **options)
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    assert torch.equal(kv_cache, before)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 71, "ahead": 70},
        {"window": 1, "ahead": 0, "softcap": 2.0},
        {"window": 4, "ahead": 3},
        {"window": 64, "ahead": 64, "softcap": 2.0},
    ],
    ids=str,
)
def test_windows_both_ways_in_the_prefill_kernel(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    """Against torch's blocks of queries, and those against one mask of the whole prompt."""
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 tiles as integers")
    counts = [1, 64, 300]
    q, keys_values = (tensor(i, 365, 4, 24, dtype=dtype) for i in (0, 1))
    keys_values = keys_values.view(365, 2, 2, 24)
    segments = [Segment(0, 1, 0, 0, 1), Segment(1, 64, 0, 1, 64), Segment(65, 300, 0, 65, 300)]
    both = {"scale": 0.2, "is_causal": False, **options}
    blocks = prompt_blocks(segments, 9).to(DEVICE)
    out = triton_prefill.prefill_attention(q, keys_values, blocks=blocks, **both)
    wanted = TorchPrefillAttention(segments)(q, keys_values, **both)
    assert (out - wanted).norm() / wanted.norm() < TOLERANCE[dtype]
    for queries, kv in zip(torch.split(q, counts), torch.split(keys_values, counts), strict=True):
        at = torch.arange(len(queries), device=DEVICE)
        distance = at - at[:, None]
        seen = (distance > -options["window"]) & (distance <= options["ahead"])
        keys, values = kv.repeat_interleave(2, 2).permute(1, 2, 0, 3)
        own = ops.attend(
            queries.transpose(0, 1)[None], keys[None], values[None],
            mask=seen, scale=0.2, softcap=options.get("softcap"),
        )  # fmt: skip
        found, wanted = wanted[: len(queries)], wanted[len(queries) :]
        error = found - own[0].transpose(0, 1).flatten(1)
        assert error.norm() / found.norm() < TOLERANCE[dtype]
