"""The kernels that write and read int8 keys and values against torch, on a GPU or in Triton's
interpreter: as test_kernels.py."""

from typing import Any

import pytest
import torch

from deployments.engine.attention.int8_kv_cache import dequantise, quantise
from deployments.engine.attention.prefill import TorchPrefillAttention
from deployments.engine.kernels.ops import Rope, Segment, prompt_blocks
from tests.deployments.engine.kernels import torch_kernels
from tests.deployments.engine.kernels.test_kernels import (
    DEVICE,
    FUSED,
    TOLERANCE,
    expansion,
    rows,
    tensor,
)

if not FUSED:
    pytest.skip("needs a GPU with Triton, or TRITON_INTERPRET=1", allow_module_level=True)

from deployments.engine.kernels import triton_attention, triton_prefill
from deployments.engine.kernels.triton_kv_cache import write_int8

# The interpreter multiplies bfloat16 tiles as integers.
DTYPES = [torch.float32] + ([torch.bfloat16] if DEVICE == "cuda" else [])
POSITIONS = 400


def cache(heads: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An int8 cache whose positions have scales from a tenth to ten, and its scales."""
    spread = 10.0 ** tensor(7, POSITIONS, 2, heads, 1).clamp(-1, 1)
    whole, scales = quantise(tensor(1, POSITIONS, 2, heads, dim) * spread)
    return whole, scales.permute(1, 2, 0).contiguous()


def read(kept: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    return dequantise(kept[0], kept[1].permute(2, 0, 1), dtype)


def assert_near(out: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """A key in bfloat16 that rounds otherwise may become another byte."""
    assert (out - wanted).norm() / wanted.norm() < 1.5 * TOLERANCE[dtype]


def assert_same_cache(
    kept: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """To the bit, but that a GPU divides and adds LoRA in another order: one step of a few."""
    steps = (kept[0].int() - wanted[0].int()).abs()
    assert steps.max() <= 1
    assert (steps > 0).float().mean() < 1e-3
    torch.testing.assert_close(kept[1], wanted[1], rtol=2**-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "dim"), [(1, 16), (3, 24), (32, 64), (2, 128)])
def test_what_is_written(heads: int, dim: int, dtype: torch.dtype) -> None:
    kept = cache(heads, dim)
    written = tensor(5, 7, heads * 3, dim, dtype=dtype)  # queries before keys and values
    written[3] = 0
    written[4] *= 1e-30
    kv = written[:, heads:].view(7, 2, heads, dim)
    positions = rows(0, 399, 5, 17, 18, 200, 1)
    wanted = tuple(each.clone() for each in kept)
    whole, scales = quantise(kv)
    wanted[0][positions], wanted[1][..., positions] = whole, scales.permute(1, 2, 0)
    write_int8(*kept, positions, kv)
    assert_same_cache(kept, (wanted[0], wanted[1]))
    assert not read(kept, dtype)[17].any()
    assert read(kept, torch.float32)[18].any(), "a small number is none"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 24, 72])
@pytest.mark.parametrize(
    ("heads", "groups", "dim", "kind", "options"),
    [
        (4, 1, 64, "bias", {}),
        (3, 1, 24, "plain", {}),
        (2, 4, 64, "rope", {}),
        (2, 1, 24, "rope", {"window": 70, "softcap": 20.0}),
    ],
    ids=str,
)
def test_a_decode_step(
    heads: int,
    groups: int,
    dim: int,
    kind: str,
    options: dict[str, Any],
    rank: int,
    dtype: torch.dtype,
) -> None:
    kept = cache(heads, dim)
    before = tuple(each.clone() for each in kept)
    wanted_kept = tuple(each.clone() for each in kept)
    qkv = tensor(0, 5, heads * (groups + 2), dim, dtype=dtype)
    torch_qkv = qkv.clone()
    starts, lengths = rows(0, 130, 140, 210, 399), rows(129, 0, 64, 65, 0)
    bias = tensor(2, heads, 140, dtype=dtype) if kind == "bias" else None
    rope = Rope(tensor(3, 140, dim), tensor(4, 140, dim)) if kind == "rope" else None
    queries, width = heads * groups * dim, heads * dim
    columns = {0: queries, queries: width, queries + width: width}
    added = expansion(qkv[0].numel(), columns, rank, dtype) if rank else None
    both: dict[str, Any] = {"bias": bias, "rope": rope, "scale": dim**-0.5, **options}
    out = triton_attention.decode_attention(
        qkv, added, kept[0], starts, lengths, kv_scales=kept[1], **both
    )
    wanted = torch_kernels.decode_attention(
        torch_qkv, added, wanted_kept[0], starts, lengths, kv_scales=wanted_kept[1], **both
    )
    assert_near(out, wanted, dtype)
    new = starts + lengths
    if dtype == torch.float32:
        assert_same_cache(
            (kept[0][new], kept[1][..., new]), (wanted_kept[0][new], wanted_kept[1][..., new])
        )
    untouched = torch.ones(POSITIONS, dtype=torch.bool, device=DEVICE)
    untouched[new] = False
    assert torch.equal(kept[0][untouched], before[0][untouched])
    assert torch.equal(kept[1][..., untouched], before[1][..., untouched])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 20])
def test_a_decode_step_over_answer_and_prompt(window: int | None, dtype: torch.dtype) -> None:
    kept = cache(2, 24)
    wanted_kept = tuple(each.clone() for each in kept)
    qkv = tensor(0, 5, 2 * (3 + 2), 24, dtype=dtype)
    own = rows(0, 100, 170, 240, 330), rows(60, 0, 30, 65, 1)
    prompts = rows(70, 110, 205, 310, 395), rows(20, 50, 3, 1, 5)
    both: dict[str, Any] = {"bias": None, "scale": 0.2, "window": window, "prompts": prompts}
    out = triton_attention.decode_attention(
        qkv.clone(), None, kept[0], *own, kv_scales=kept[1], rope=None, **both
    )
    wanted = torch_kernels.decode_attention(
        qkv, None, wanted_kept[0], *own, kv_scales=wanted_kept[1], **both
    )
    assert_near(out, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 16])
def test_attention_to_the_prompt(rank: int, dtype: torch.dtype) -> None:
    kept, q = cache(3, 64), tensor(0, 5, 3, 64, dtype=dtype)
    starts, lengths = rows(0, 130, 131, 200, 399), rows(130, 1, 64, 65, 1)
    added = expansion(192, {0: 192}, rank, dtype) if rank else None
    wanted = torch_kernels.cross_attention(
        q.clone(), added, read(kept, dtype), starts, lengths, scale=0.125
    )
    out = triton_attention.cross_attention(
        q, added, kept[0], starts, lengths, kv_scales=kept[1], scale=0.125
    )
    assert_near(out, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("groups", "options"), [(1, {}), (2, {}), (2, {"window": 70, "softcap": 2.0})], ids=str
)
def test_a_piece_of_a_prompt(groups: int, options: dict[str, Any], dtype: torch.dtype) -> None:
    kept, q = cache(2, 24), tensor(0, 195, 2 * groups, 24, dtype=dtype)
    segments = [Segment(0, 1, 0, 3, 1), Segment(1, 64, 70, 100, 134), Segment(65, 130, 0, 9, 130)]
    both: dict[str, Any] = {"scale": 0.2, "is_causal": True, **options}
    blocks = prompt_blocks(segments, 9).to(DEVICE)
    out = triton_prefill.prefill_attention(q, kept[0], blocks=blocks, kv_scales=kept[1], **both)
    of_torch = TorchPrefillAttention(segments)
    assert_near(out, of_torch(q, kept[0], kv_scales=kept[1], **both), dtype)
    assert_near(out, of_torch(q, read(kept, dtype), **both), dtype)
