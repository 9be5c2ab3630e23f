"""Attention over the key/value memory: one kernel each, with a PyTorch twin (see kernels.py).

A kernel that reads a product next adds the product's LoRA expansion itself: one launch less, and
the product is not written twice.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F

from deployments.engine.kernels.lora import Expansion, are_fused, lora_expand_add_torch

BLOCK_M = 64  # queries of one program of the prompt kernel


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: x * cos + (x with its halves swapped) * sin.

    cos, sin: (S, D), by position; the first half of sin carries the minus sign.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def at(self, positions: torch.Tensor) -> "Rope":
        """(T, D), of these positions (T,)."""
        return Rope(self.cos[positions], self.sin[positions])

    def turn_(self, x: torch.Tensor) -> None:
        """x (T, heads, D) in place; token t lies at this rope's position t."""
        first, second = x.chunk(2, -1)
        swapped = torch.cat([second, first], -1).mul_(self.sin[:, None])
        x.mul_(self.cos[:, None]).add_(swapped)


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring query tokens of one prompt, and the keys that they may see.

    first, count: the queries in the batch. position: of the first query among the keys.
    first_key, num_keys: in whatever holds keys and values.
    """

    first: int
    count: int
    position: int
    first_key: int
    num_keys: int


def decode_attention(
    qkv: torch.Tensor,
    expansion: Expansion | None,
    memory: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    rope: Rope | None = None,
    scale: float,
) -> torch.Tensor:
    """The newest token of each row: its key and value go into the memory, its queries attend over
    the row's positions, the newest included. May change `qkv`.

    Args:
        qkv: (B, H * G + 2 H, D), G query heads for each key/value head.
        expansion: of the product that gave qkv, not yet added.
        memory: (T, 2, H, D) keys and values.
        starts, lengths: (B,): the row's first position, and how many it has, the newest excluded.
        bias: (H, S) added by distance from the newest position (then G is 1), or None.
        rope: turns queries and keys; the newest token's position is `lengths`.

    Returns:
        (B, H * G * D)
    """
    triton_attention = _triton(qkv.device.type)
    if triton_attention is None:
        return decode_attention_torch(
            qkv, expansion, memory, starts, lengths, bias=bias, rope=rope, scale=scale
        )
    tables = None if rope is None else (rope.cos, rope.sin)
    out: torch.Tensor = triton_attention.decode_attention(
        qkv, expansion, memory, starts, lengths, bias=bias, rope=tables, scale=scale
    )
    return out


def decode_attention_torch(
    qkv: torch.Tensor,
    expansion: Expansion | None,
    memory: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    rope: Rope | None = None,
    scale: float,
) -> torch.Tensor:
    if expansion is not None:
        lora_expand_add_torch(qkv.view(len(qkv), -1), expansion)
    heads = memory.shape[2]
    num_queries = qkv.shape[1] - 2 * heads
    if rope is not None:
        rope.at(lengths).turn_(qkv[:, : num_queries + heads])
    rows, _, dim = qkv.shape
    keys_values = qkv[:, num_queries:].view(rows, 2, heads, dim)
    memory.index_copy_(0, starts + lengths, keys_values)
    q = qkv[:, :num_queries].view(rows, heads, -1, dim)
    return _attention_torch(q, memory, starts, lengths + 1, bias, scale)


def cross_attention(
    q: torch.Tensor,
    expansion: Expansion | None,
    memory: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    """One query position of each row over `lengths` positions that are in the memory already.

    Args:
        q: (B, H, D). May be changed.
        expansion: of the product that gave q, not yet added.

    Returns:
        (B, H * D)
    """
    triton_attention = _triton(q.device.type)
    if triton_attention is None:
        return cross_attention_torch(q, expansion, memory, starts, lengths, scale=scale)
    out: torch.Tensor = triton_attention.cross_attention(
        q, expansion, memory, starts, lengths, scale=scale
    )
    return out


def cross_attention_torch(
    q: torch.Tensor,
    expansion: Expansion | None,
    memory: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    if expansion is not None:
        lora_expand_add_torch(q.view(len(q), -1), expansion)
    return _attention_torch(q.unsqueeze(2), memory, starts, lengths, None, scale)


def prefill_attention(
    q: torch.Tensor,
    keys_values: torch.Tensor,
    blocks: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scale: float,
    is_causal: bool,
) -> torch.Tensor:
    """The queries of many prompts at once, each over its own prompt. Only where kernels run.

    Args:
        q: (T, H * G, D).
        keys_values: (S, 2, H, D), a view whose last two dimensions lie next to each other.
        blocks: (n, 5) int32 from `prompt_blocks`.
        bias: (H * G, 2 P - 1) added by key position - query position + P - 1, or None.

    Returns:
        (T, H * G * D); zeros for tokens that are in no block.
    """
    from deployments.engine.kernels import triton_prompts

    out: torch.Tensor = triton_prompts.prefill_attention(
        q, keys_values, blocks, bias=bias, scale=scale, is_causal=is_causal
    )
    return out


def prefill_attention_torch(
    q: torch.Tensor,
    keys_values: torch.Tensor,
    segments: Sequence[Segment],
    masks: Sequence[torch.Tensor | None],
    *,
    scale: float,
    is_causal: bool,
) -> torch.Tensor:
    """As `prefill_attention`, one prompt after the other: the segments, which follow each other in
    q, and what `segment_mask` gives for each."""
    attended = []
    groups = q.shape[1] // keys_values.shape[2]
    for segment, mask in zip(segments, masks, strict=True):
        queries = q[segment.first : segment.first + segment.count].transpose(0, 1)[None]
        kv = keys_values[segment.first_key : segment.first_key + segment.num_keys]
        keys, values = kv.permute(1, 2, 0, 3).repeat_interleave(groups, 1).unsqueeze(1)
        is_square = is_causal and mask is None
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=is_square, scale=scale
        )
        attended.append(out[0].transpose(0, 1).reshape(segment.count, -1))
    return torch.cat(attended)


def segment_mask(
    segment: Segment, bias: torch.Tensor | None, *, is_causal: bool, device: torch.device
) -> torch.Tensor | None:
    """What is added to, or masks, the scores of a segment: (1, heads, count, num_keys) of a bias,
    (count, num_keys) of a chunk that goes on; None: nothing, or the plain causal triangle."""
    keys = torch.arange(segment.num_keys, device=device)
    queries = torch.arange(segment.count, device=device)[:, None] + segment.position
    if bias is not None:
        return bias[:, keys - queries + bias.shape[1] // 2][None]
    return keys <= queries if is_causal and segment.position else None


def prompt_blocks(segments: Sequence[Segment], num_blocks: int | None = None) -> torch.Tensor:
    """(n, 5) int32 on the host: the segments in pieces of one kernel program each, and empty ones
    up to `num_blocks`: first query, count, its position, first key, number of keys."""
    rows = BLOCK_M
    blocks = [
        (s.first + i, min(rows, s.count - i), s.position + i, s.first_key, s.num_keys)
        for s in segments
        for i in range(0, s.count, rows)
    ]
    if num_blocks is not None:
        blocks += [(0, 0, 0, 0, 0)] * (num_blocks - len(blocks))
    return torch.tensor(blocks, dtype=torch.int32)


def _attention_torch(
    q: torch.Tensor,
    memory: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """q (B, H, G, D) over [start, start + length), gathering every row to the longest length."""
    longest = int(lengths.max())
    at = torch.arange(longest, device=q.device)
    hidden = at >= lengths[:, None]
    rows = (starts[:, None] + at).masked_fill(hidden, 0)
    keys, values = memory[rows].permute(2, 0, 3, 1, 4)  # (B, H, L, D)
    scores = torch.matmul(q, keys.transpose(2, 3)) * scale
    if bias is not None:
        distance = (lengths[:, None] - 1 - at).clamp(min=0)
        scores = scores + bias[:, distance].transpose(0, 1).unsqueeze(2)
    scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
    weights = scores.float().softmax(-1).to(q.dtype)
    return torch.matmul(weights, values).reshape(len(q), -1)


@functools.cache
def _triton(device_type: str) -> ModuleType | None:
    """The Triton kernels, where they run."""
    if not are_fused(device_type):
        return None
    from deployments.engine.kernels import triton_attention

    return triton_attention
