"""Attend over prompts with torch, and lay them out for the Triton kernel (triton_prefill.py)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from deployments.engine.kernels.types import BLOCK_M, Segment


def prefill_attention_torch(
    q: torch.Tensor,
    keys_values: torch.Tensor,
    segments: Sequence[Segment],
    masks: Sequence[torch.Tensor | None],
    *,
    scale: float,
    is_causal: bool,
) -> torch.Tensor:
    """Compute what the Triton `prefill_attention` does, one prompt after the other.

    Args:
        segments: they follow each other in q.
        masks: what `segment_mask` returns for each segment.
    """
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
    """Return what is added to, or masks, the scores of a segment.

    Returns:
        (1, heads, count, num_keys) made from a bias; (count, num_keys) for a chunk that continues a
        prompt; None when nothing, or the plain causal triangle, applies.
    """
    keys = torch.arange(segment.num_keys, device=device)
    queries = torch.arange(segment.count, device=device)[:, None] + segment.position
    if bias is not None:
        return bias[:, keys - queries + bias.shape[1] // 2][None]
    return keys <= queries if is_causal and segment.position else None


def prompt_blocks(segments: Sequence[Segment], num_blocks: int | None = None) -> torch.Tensor:
    """Cut the segments into blocks of BLOCK_M queries, one for each program of the kernel.

    Args:
        num_blocks: empty blocks are added up to this number.

    Returns:
        (n, 5) int32 on the host: first query, count, its position, first key, number of keys.
    """
    rows = BLOCK_M
    blocks = [
        (s.first + i, min(rows, s.count - i), s.position + i, s.first_key, s.num_keys)
        for s in segments
        for i in range(0, s.count, rows)
    ]
    if num_blocks is not None:
        blocks += [(0, 0, 0, 0, 0)] * (num_blocks - len(blocks))
    return torch.tensor(blocks, dtype=torch.int32)
