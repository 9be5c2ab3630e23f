"""What the Triton kernels compute, in plain torch. The tests compare the two."""

from collections.abc import Sequence

import torch

from deployments.engine.attention.int8_kv_cache import dequantise, quantise
from deployments.engine.kernels import ops
from deployments.engine.kernels.ops import Expansion, HeadNorm, Rope


def lora_shrink(
    x: torch.Tensor, stacks: Sequence[torch.Tensor], slots: torch.Tensor
) -> torch.Tensor:
    products = [torch.bmm(a[slots].float(), x.float().unsqueeze(2)).squeeze(2) for a in stacks]
    return torch.stack(products, 1)


def lora_expand_add(
    y: torch.Tensor, expansion: Expansion, gains: Sequence[torch.Tensor | None] = ()
) -> None:
    for i, (start, b) in enumerate(expansion.stacks):
        shrunk = expansion.shrunk[:, i, None]
        added = torch.bmm(shrunk, b[expansion.slots].float()).squeeze(1)
        columns = y[:, start : start + b.shape[2]]
        gain = gains[i] if gains else None
        base = columns.float() if gain is None else columns * gain[expansion.slots]
        columns.copy_((base + added).to(y.dtype))


def decode_attention(
    qkv: torch.Tensor,
    expansion: Expansion | None,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    kv_scales: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    norm: HeadNorm | None = None,
    rope: Rope | None = None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    prompts: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    if expansion is not None:
        lora_expand_add(qkv.view(len(qkv), -1), expansion)
    heads = kv_cache.shape[2]
    num_queries = qkv.shape[1] - 2 * heads
    if norm is not None:
        own = qkv[:, : num_queries + heads]
        ops.normalise_torch_(own, norm.weight, norm.eps, (-1,))
    if rope is not None:
        rope.at(lengths).apply_rotary_(qkv[:, : num_queries + heads])
    rows, _, dim = qkv.shape
    keys_values = qkv[:, num_queries:].view(rows, 2, heads, dim)
    if kv_scales is None:
        kv_cache.index_copy_(0, starts + lengths, keys_values)
    else:
        whole, scales = quantise(keys_values)
        kv_cache.index_copy_(0, starts + lengths, whole)
        kv_scales.index_copy_(2, starts + lengths, scales.permute(1, 2, 0))
        kv_cache = dequantise(kv_cache, kv_scales.permute(2, 0, 1), qkv.dtype)
    q = qkv[:, :num_queries].view(rows, heads, -1, dim)
    if prompts is not None:
        return _merged(q, kv_cache, (starts, lengths + 1), prompts, scale, window, softcap)
    return _attention(q, kv_cache, starts, lengths + 1, bias, scale, window, softcap)


def _merged(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor],
    prompts: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attend with q (B, H, G, D), each row by itself."""
    attended = []
    for query, start, length, prompt, count in zip(q, *own, *prompts, strict=True):
        first = 0 if window is None else max(0, int(length) - window)
        at = [*range(int(start) + first, int(start + length)), *range(prompt, prompt + count)]
        keys, values = kv_cache[at].permute(1, 2, 0, 3)
        scores = torch.matmul(query, keys.transpose(1, 2)).float() * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        attended.append(torch.matmul(scores.softmax(-1).to(q.dtype), values).flatten())
    return torch.stack(attended)


def cross_attention(
    q: torch.Tensor,
    expansion: Expansion | None,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float,
    softcap: float | None = None,
) -> torch.Tensor:
    if expansion is not None:
        lora_expand_add(q.view(len(q), -1), expansion)
    q = q.view(len(q), kv_cache.shape[2], -1, q.shape[2])
    return _attention(q, kv_cache, starts, lengths, None, scale, softcap=softcap)


def _attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """q (B, H, G, D) over [start, start + length), gathering every row to the longest length."""
    longest = int(lengths.max())
    at = torch.arange(longest, device=q.device)
    hidden = at >= lengths[:, None]
    if window is not None:
        hidden |= at < lengths[:, None] - window
    rows = (starts[:, None] + at).masked_fill(hidden, 0)
    keys, values = kv_cache[rows].permute(2, 0, 3, 1, 4)  # (B, H, L, D)
    scores = torch.matmul(q, keys.transpose(2, 3)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        distance = (lengths[:, None] - 1 - at).clamp(min=0)
        scores = scores + bias[:, distance].transpose(0, 1).unsqueeze(2)
    scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
    weights = scores.float().softmax(-1).to(q.dtype)
    return torch.matmul(weights, values).reshape(len(q), -1)


def pick(
    logits: torch.Tensor,
    ends: torch.Tensor,
    blocks: torch.Tensor,
    rows: torch.Tensor,
    newest: torch.Tensor,
) -> torch.Tensor:
    """As triton_pick.pick."""
    endings = logits.index_select(1, ends)
    logits.index_copy_(1, ends, endings.masked_fill(blocks[:, None] > 0, -torch.inf))
    tokens = logits.argmax(-1)
    newest.index_copy_(0, rows, tokens)
    return tokens


def group_rows(
    slots: torch.Tensor, tile_rows: int
) -> tuple[torch.Tensor, list[list[int]], list[int]]:
    """Return the order of the rows, each tile's slot, first place and size, and the adapters."""
    order, tiles, first = torch.sort(slots, stable=True).indices, [], 0
    slots_used, counts = torch.unique(slots, return_counts=True)
    for slot, count in zip(slots_used.tolist(), counts.tolist(), strict=True):
        for begin in range(0, count, tile_rows):
            tiles.append([slot, first + begin, min(tile_rows, count - begin)])
        first += count
    return order, tiles, [slot for slot in slots_used.tolist() if slot]
