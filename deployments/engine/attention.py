"""One decode step's attention over the key/value memory, rows of different lengths together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from deployments.engine.kv_cache import KvCache, Span


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """The rows of a decode step.

    tokens: (B,) the rows' newest tokens, not yet in the memory.
    lengths: positions of each row that its decoder has filled so far; the token goes there.
    prompt_lengths: prompt tokens of each row.
    """

    rows: tuple[int, ...]  # ascending
    tokens: torch.Tensor
    lengths: tuple[int, ...]
    prompt_lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """Positions [start, stop) of a span's rows, and what is added to their scores.

    bias: (n, 1 or H, 1, stop - start) with -inf where a row may not look; None: nothing to add.
    """

    span: Span
    start: int
    stop: int
    bias: torch.Tensor | None


MakeBias = Callable[[torch.Tensor, int], torch.Tensor]
"""(n,) lengths of a span's rows and their maximum L -> (n, H, 1, L)."""


def reads_from_front(
    cache: KvCache, batch: DecodeBatch, dtype: torch.dtype, bias: MakeBias | None = None
) -> list[Read]:
    """What each row reads when it sees itself and all its earlier positions.

    Args:
        bias: added to the scores of visible positions.
    """
    reads = []
    lengths = dict(zip(batch.rows, batch.lengths, strict=True))
    for span in cache.spans(batch.rows):
        seen = _of_span(cache, span, lengths, plus=1)
        longest = max(seen)
        added = None
        device = batch.tokens.device
        if bias is not None or min(seen) < longest:
            seen_of_row = torch.tensor(seen, device=device)
            hidden = torch.arange(longest, device=device) >= seen_of_row[:, None]
            added = (
                hidden[:, None, None, :].to(dtype).masked_fill_(hidden[:, None, None], -torch.inf)
            )
            if bias is not None:
                added = added + bias(seen_of_row, longest)
        reads.append(Read(span, 0, longest, added))
    return reads


def reads_from_back(cache: KvCache, batch: DecodeBatch, dtype: torch.dtype) -> list[Read]:
    """What each row reads of its prompt, which lies against the end of its memory."""
    reads = []
    lengths = dict(zip(batch.rows, batch.prompt_lengths, strict=True))
    for span in cache.spans(batch.rows):
        seen = _of_span(cache, span, lengths, plus=0)
        longest = max(seen)
        added = None
        if min(seen) < longest:
            device = batch.tokens.device
            first_seen = longest - torch.tensor(seen, device=device)
            hidden = torch.arange(longest, device=device) < first_seen[:, None]
            added = (
                hidden[:, None, None, :].to(dtype).masked_fill_(hidden[:, None, None], -torch.inf)
            )
        reads.append(Read(span, span.capacity - longest, span.capacity, added))
    return reads


def attend(
    q: torch.Tensor, cache: KvCache, layer: int, reads: Sequence[Read], *, scale: float
) -> torch.Tensor:
    """q (B, H, G, D), G query heads for each key/value head -> (B, H * G * D)."""
    if len(reads) == 1 and reads[0].span.index is None:
        out = _attend_span(q, cache, layer, reads[0], scale)
        return out.reshape(len(q), -1)
    out = torch.empty_like(q)
    for read in reads:
        span = read.span
        if span.index is None or span.offsets is None:
            raise AssertionError(f"a span of rows {span.rows} is whole, but not alone")
        spread = q.new_zeros(span.num_rows, *q.shape[1:])
        spread[span.offsets] = q[span.index]
        out[span.index] = _attend_span(spread, cache, layer, read, scale)[span.offsets]
    return out.reshape(len(q), -1)


def _attend_span(
    q: torch.Tensor, cache: KvCache, layer: int, read: Read, scale: float
) -> torch.Tensor:
    keys, values = cache.keys_values(layer, read.span, read.start, read.stop)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=read.bias, scale=scale)


def _blocked(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(n, L) bool -> (n, 1, 1, L): -inf where hidden, else 0."""
    added = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return added.masked_fill_(hidden, -torch.inf)[:, None, None]


def _of_span(cache: KvCache, span: Span, lengths: dict[int, int], *, plus: int) -> list[int]:
    """Visible positions of every row of the span; 1 for a row that is not in the batch."""
    first = cache.starts.index(span.start)
    return [
        lengths[row] + plus if row in lengths else 1 for row in range(first, first + span.num_rows)
    ]
