"""Attend over the KV cache in a decode step: one Triton kernel each, or the `*_torch` version.

A kernel that reads a product next also adds the product's LoRA expansion: one launch less, and the
product is not written twice.
"""

import functools
from types import ModuleType

import torch

from deployments.engine.kernels.lora import are_fused, lora_expand_add_torch
from deployments.engine.kernels.types import Expansion, Rope


def decode_attention(
    qkv: torch.Tensor,
    expansion: Expansion | None,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    rope: Rope | None = None,
    scale: float,
) -> torch.Tensor:
    """Write each row's newest key and value to the cache and attend over the row's positions.

    May change `qkv`.

    Args:
        qkv: (B, H * G + 2 H, D), G query heads for each key/value head.
        expansion: of the product that gave qkv, not yet added.
        kv_cache: (T, 2, H, D) keys and values.
        starts, lengths: (B,): the row's first position, and its length without the newest token.
        bias: (H, S) added by distance from the newest position (then G is 1), or None.
        rope: rotates queries and keys; the newest token's position is `lengths`.

    Returns:
        (B, H * G * D)
    """
    triton_attention = _triton(qkv.device.type)
    if triton_attention is None:
        return decode_attention_torch(
            qkv, expansion, kv_cache, starts, lengths, bias=bias, rope=rope, scale=scale
        )
    tables = None if rope is None else (rope.cos, rope.sin)
    out: torch.Tensor = triton_attention.decode_attention(
        qkv, expansion, kv_cache, starts, lengths, bias=bias, rope=tables, scale=scale
    )
    return out


def decode_attention_torch(
    qkv: torch.Tensor,
    expansion: Expansion | None,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    rope: Rope | None = None,
    scale: float,
) -> torch.Tensor:
    if expansion is not None:
        lora_expand_add_torch(qkv.view(len(qkv), -1), expansion)
    heads = kv_cache.shape[2]
    num_queries = qkv.shape[1] - 2 * heads
    if rope is not None:
        rope.at(lengths).apply_rotary_(qkv[:, : num_queries + heads])
    rows, _, dim = qkv.shape
    keys_values = qkv[:, num_queries:].view(rows, 2, heads, dim)
    kv_cache.index_copy_(0, starts + lengths, keys_values)
    q = qkv[:, :num_queries].view(rows, heads, -1, dim)
    return _attention_torch(q, kv_cache, starts, lengths + 1, bias, scale)


def cross_attention(
    q: torch.Tensor,
    expansion: Expansion | None,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    """Attend with one query of each row over `lengths` positions that the cache holds already.

    Args:
        q: (B, H, D). May be changed.
        expansion: of the product that gave q, not yet added.

    Returns:
        (B, H * D)
    """
    triton_attention = _triton(q.device.type)
    if triton_attention is None:
        return cross_attention_torch(q, expansion, kv_cache, starts, lengths, scale=scale)
    out: torch.Tensor = triton_attention.cross_attention(
        q, expansion, kv_cache, starts, lengths, scale=scale
    )
    return out


def cross_attention_torch(
    q: torch.Tensor,
    expansion: Expansion | None,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
) -> torch.Tensor:
    if expansion is not None:
        lora_expand_add_torch(q.view(len(q), -1), expansion)
    return _attention_torch(q.unsqueeze(2), kv_cache, starts, lengths, None, scale)


def _attention_torch(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Attend with q (B, H, G, D) over [start, start + length); rows are padded to the longest."""
    longest = int(lengths.max())
    at = torch.arange(longest, device=q.device)
    hidden = at >= lengths[:, None]
    rows = (starts[:, None] + at).masked_fill(hidden, 0)
    keys, values = kv_cache[rows].permute(2, 0, 3, 1, 4)  # (B, H, L, D)
    scores = torch.matmul(q, keys.transpose(2, 3)) * scale
    if bias is not None:
        distance = (lengths[:, None] - 1 - at).clamp(min=0)
        scores = scores + bias[:, distance].transpose(0, 1).unsqueeze(2)
    scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
    weights = scores.float().softmax(-1).to(q.dtype)
    return torch.matmul(weights, values).reshape(len(q), -1)


@functools.cache
def _triton(device_type: str) -> ModuleType | None:
    """Return the Triton kernels. Returns None where they do not run."""
    if not are_fused(device_type):
        return None
    from deployments.engine.kernels import triton_attention

    return triton_attention
