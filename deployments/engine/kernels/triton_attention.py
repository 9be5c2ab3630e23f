"""Attend over the KV cache by the kernels of triton_decode.py: only where Triton runs."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton

from deployments.engine.kernels.backend import counters, launch_options, overlaps, shared_bytes
from deployments.engine.kernels.ops import Expansion, HeadNorm, Rope
from deployments.engine.kernels.tiles import decode_tile, padded, rope_decode_tile
from deployments.engine.kernels.triton_decode import decode_kernel, rope_decode_kernel
from deployments.engine.kernels.triton_grouped_lora import lora_expand_add
from deployments.engine.kernels.triton_kv_cache import scales_arguments

MAX_FUSED_RANK = 64  # a separate kernel adds larger ranks first
_MOST_PROGRAMS = 1 << 14  # whose keys are split


def decode_attention(
    qkv: torch.Tensor,
    expansion: Expansion | None,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    kv_scales: torch.Tensor | None = None,
    bias: torch.Tensor | None,
    norm: HeadNorm | None = None,
    rope: Rope | None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    prompts: tuple[torch.Tensor, torch.Tensor] | None = None,
    is_invariant: bool = False,
    shares_rows: bool = False,
) -> torch.Tensor:
    """Write each row's newest key and value to the cache and attend over the row's positions.

    A large-rank expansion is added to `qkv` itself, unless sums keep one order.

    Args:
        qkv: (B, H * G + 2 H, D), G query heads for each key/value head.
        expansion: of the product that gave qkv, not yet added.
        kv_cache: (T, 2, H, D) keys and values.
        kv_scales: (2, H, T), if they are int8.
        starts, lengths: (B,): the row's first position, and its length without the newest token.
        bias: (H, S) added by distance from the newest position (then G is 1, without the options
            below), or None.
        norm: of queries and keys, with their expansion.
        rope: rotates queries and keys; the newest token's position is `lengths`.
        window: attend over that many positions at most, the newest among them.
        softcap: scores s become softcap * tanh(s / softcap).
        prompts: (B,) each: first position and length of what is attended to as well, whole.
        is_invariant: a row's sums have one order, whatever the number of rows and the largest rank.
        shares_rows: several of the batch may be neighbouring tokens of one row: all are written
            before any attends.

    Returns:
        (B, H * G * D)
    """
    rows, all_heads, dim = qkv.shape
    heads = kv_cache.shape[2]
    groups = all_heads // heads - 2
    is_plain = groups == 1 and all(each is None for each in (norm, rope, window, softcap, prompts))
    if bias is not None and not is_plain:
        raise ValueError(
            "a bias by distance goes without norms, RoPE, grouped queries, a window, a soft cap or "
            "prompts"
        )
    out = torch.empty(rows, heads * groups * dim, dtype=qkv.dtype, device=qkv.device)
    first_columns = (0, heads * groups * dim, heads * (groups + 1) * dim)
    lora = _lora_arguments(qkv.flatten(1), expansion, first_columns, is_invariant=is_invariant)
    choose = decode_tile if is_plain else rope_decode_tile
    tile = _tile(choose, qkv, None if is_invariant else rows * heads)
    scales = scales_arguments(kv_scales, qkv)
    cos, sin = (qkv, qkv) if rope is None else (rope.cos, rope.sin)
    norms = (qkv, 0.0) if norm is None else (norm.weight, norm.eps)
    for number in (1, 2) if shares_rows else (0,):
        if is_plain:
            decode_kernel[heads, rows](
                qkv, kv_cache, starts, lengths, qkv if bias is None else bias, out, scale,
                qkv.stride(0), 0 if bias is None else bias.stride(0), *lora.tensors, *scales,
                H=heads, D=dim, DP=padded(dim), APPEND=True, HAS_BIAS=bias is not None,
                IS_INT8=kv_scales is not None, PASS=number, **lora.sizes, **tile,
            )  # fmt: skip
            continue
        own_tile = tile | {"SPLITS": 1} if number == 1 else tile
        rope_decode_kernel[heads, rows, own_tile["SPLITS"]](
            qkv, kv_cache, starts, lengths, cos, sin, *norms, out, scale, qkv.stride(0),
            *lora.tensors, *scales, *(prompts or (starts, lengths)),
            *_scratch(own_tile["SPLITS"], rows * heads, groups, qkv),
            MERGED=prompts is not None, HAS_NORM=norm is not None, H=heads, G=groups,
            GQ=triton.next_power_of_2(groups), GP=_padded_groups(groups), D=dim, DP=padded(dim),
            ROT=0 if rope is None else cos.shape[1], WINDOW=window or 0, CAP=softcap or 0.0,
            IS_INT8=kv_scales is not None, PASS=number, **lora.sizes, **own_tile,
        )  # fmt: skip
    return out


def _scratch(splits: int, programs: int, groups: int, like: torch.Tensor) -> tuple[Any, ...]:
    """Return where the parts of split keys are put together: their sums of values, their largest
    scores and sums of exponentials, and counters."""
    if splits == 1:
        return like, like, like
    assert programs <= _MOST_PROGRAMS, "more heads of rows than counters"
    empty = functools.partial(torch.empty, dtype=torch.float32, device=like.device)
    return (
        empty(programs * splits, groups, like.shape[2]),
        empty(programs * splits, 2, _padded_groups(groups)),
        counters("attention", _MOST_PROGRAMS, like.device),
    )


def _padded_groups(groups: int) -> int:
    """Return the rows of a tile for the query heads of one key/value head: tl.dot takes 16."""
    return max(16, int(triton.next_power_of_2(groups)))


def cross_attention(
    q: torch.Tensor,
    expansion: Expansion | None,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    kv_scales: torch.Tensor | None = None,
    scale: float,
    is_invariant: bool = False,
) -> torch.Tensor:
    """Attend with q (B, H, D) over `lengths` positions in the cache; returns (B, H * D).

    A large-rank expansion is added to `q` itself, unless sums keep one order.
    """
    rows, heads, dim = q.shape
    out = torch.empty(rows, heads * dim, dtype=q.dtype, device=q.device)
    lora = _lora_arguments(q.flatten(1), expansion, (0,), is_invariant=is_invariant)
    decode_kernel[heads, rows](
        q, kv_cache, starts, lengths, q, out, scale, q.stride(0), 0, *lora.tensors,
        *scales_arguments(kv_scales, q),
        H=heads, D=dim, DP=padded(dim), APPEND=False, HAS_BIAS=False,
        IS_INT8=kv_scales is not None, PASS=0, **lora.sizes,
        **_tile(decode_tile, q, None if is_invariant else rows * heads),
    )  # fmt: skip
    return out


@dataclass(frozen=True, slots=True)
class _LoraArguments:
    tensors: tuple[torch.Tensor, ...]
    sizes: dict[str, int]


def _lora_arguments(
    y: torch.Tensor,
    expansion: Expansion | None,
    first_columns: Sequence[int],
    *,
    is_invariant: bool,
) -> _LoraArguments:
    """Return what a kernel needs to add the expansion; a large rank is added to y here instead.

    In one order of sums the kernel adds any rank, eight at a time: the largest one in the pool
    decides how the smaller ones lie.
    """
    if expansion is not None and expansion.rank > MAX_FUSED_RANK and not is_invariant:
        lora_expand_add(y, expansion)
        expansion = None
    if expansion is None:
        return _LoraArguments((y,) * 5, {"R": 8, "RC": 8, "P": 0, "PQ": -1, "PK": -1, "PV": -1})
    module_at = {start: i for i, (start, _) in enumerate(expansion.stacks)}
    modules = [module_at.pop(start, -1) for start in first_columns] + [-1, -1]
    if module_at:
        raise ValueError(f"modules begin at {sorted(module_at)}, not at one of {first_columns}")
    stacks = [y if i < 0 else expansion.stacks[i][1] for i in modules[:3]]
    rank = expansion.rank
    together = 16 if rank % 16 == 0 and not is_invariant else 8
    sizes = {"R": rank, "RC": together, "P": len(expansion.stacks)}
    sizes |= dict(zip(("PQ", "PK", "PV"), modules, strict=False))
    return _LoraArguments((expansion.shrunk, expansion.slots, *stacks), sizes)


def _tile(
    choose: Callable[..., dict[str, int]], q: torch.Tensor, num_programs: int | None
) -> dict[str, Any]:
    """Return the sizes of a tile for q (B, heads, D), and how the kernel is launched."""
    device, dim, size = q.device, q.shape[2], q.element_size()
    tile = choose(num_programs, dim, size, shared_bytes(device))
    return {**tile, "OVERLAPS": overlaps(device), **launch_options(device)}
