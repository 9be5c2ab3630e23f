"""Cut long prompts into blocks of queries, and make the mask or bias of each, for torch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from deployments.engine.kernels.ops import Segment

_QUERIES = 256  # that attend together: scores and masks take this many lines

QueryBlock = tuple[Segment, Callable[[], torch.Tensor | None]]  # queries, and what makes their mask


@dataclass(frozen=True, slots=True)
class MaskRule:
    """Say which scores a kind of layer changes or hides; arguments of PrefillAttention."""

    bias: torch.Tensor | None
    device: torch.device
    window: int | None
    is_causal: bool
    is_capped: bool
    ahead: int | None = None

    def needs_mask(self, segment: Segment) -> bool:
        if self.bias is not None:
            return True
        if not self.is_causal:
            reach = None if self.window is None else min(self.window, (self.ahead or 0) + 1)
            return reach is not None and segment.num_keys > reach
        is_cut = self.window is not None and segment.num_keys > self.window
        return segment.position > 0 or self.is_capped or is_cut

    def num_keys(self, segment: Segment, last: int) -> int:
        """Return how many of the segment's keys its queries before position `last` see."""
        if not self.is_causal and self.ahead is None:
            return segment.num_keys
        return min(segment.num_keys, last + (self.ahead or 0))


def query_blocks(segment: Segment, rule: MaskRule) -> list[QueryBlock]:
    """Return the segment whole, or in blocks whose masks are made for each layer anew."""
    if not rule.needs_mask(segment):
        return [(segment, lambda: None)]
    if segment.count <= _QUERIES:
        kept = _mask(segment, rule)
        return [(segment, lambda: kept)]
    blocks: list[QueryBlock] = []
    for i in range(0, segment.count, _QUERIES):
        count, position = min(_QUERIES, segment.count - i), segment.position + i
        num_keys = rule.num_keys(segment, position + count)
        block = Segment(segment.first + i, count, position, segment.first_key, num_keys)
        blocks.append((block, functools.partial(_mask, block, rule)))
    return blocks


def first_seen(segment: Segment, window: int | None) -> int:
    """Return the first of the segment's keys that any of its queries sees."""
    return 0 if window is None else max(0, segment.position - window + 1)


def _mask(segment: Segment, rule: MaskRule) -> torch.Tensor:
    """Return what is added to, or masks, the scores of a segment.

    That is (1, heads, count, num_keys) of a bias, or (count, num_keys) where keys are hidden.
    """
    window = rule.window
    keys = torch.arange(first_seen(segment, window), segment.num_keys, device=rule.device)
    queries = torch.arange(segment.count, device=rule.device)[:, None] + segment.position
    if rule.bias is not None:
        return rule.bias[:, keys - queries + rule.bias.shape[1] // 2][None]
    last = queries if rule.ahead is None else queries + rule.ahead
    if window is not None and segment.num_keys > window:
        return (keys <= last) & (keys > queries - window)
    return keys <= last
