"""Attend over the KV cache in a decode step with torch."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deployments.engine.attention.kv_cache import KvCache, NewPositions, Span
from deployments.engine.attention.merged import MergedPositions
from deployments.engine.host_memory import numbers_on
from deployments.engine.kernels.ops import Expansion, HeadNorm, Rope, attend


@dataclass(frozen=True, slots=True)
class _Read:
    """Name positions [start, stop) of a span's rows, and what is added to their scores.

    bias: (n, 1 or H, 1, stop - start) with -inf where a row may not look; None: nothing to add.
    """

    span: Span
    start: int
    stop: int
    bias: torch.Tensor | None


class HostDecodeAttention(abc.ABC):
    """Do what a DecodeAttention does whose host knows the rows: it writes a step's keys and values,
    and then attends.

    Args:
        rows: ascending.
        positions: own positions of each row filled so far.
        prompts: prompt positions of each row.
    """

    def __init__(
        self, cache: KvCache, rows: Sequence[int], positions: Sequence[int], prompts: Sequence[int]
    ) -> None:
        self._cache = cache
        self._new = NewPositions(cache, rows, positions)
        self.positions = self._new.positions
        self._merged = MergedPositions(
            cache.starts, cache.capacities, rows, positions, prompts, cache.device
        )

    def self_attention(
        self,
        qkv: torch.Tensor,
        expansion: Expansion | None,
        layer: int,
        *,
        scale: float,
        bias: torch.Tensor | None = None,
        norm: HeadNorm | None = None,
        rope: Rope | None = None,
        window: int | None = None,
        softcap: float | None = None,
        with_prompt: bool = False,
    ) -> torch.Tensor:
        assert expansion is None, "the LoRA batch adds its products itself"
        q = self._new.write(layer, qkv, norm, rope)
        if with_prompt:
            return self._attend_merged(q, layer, window, scale, softcap)
        return self._attend_own(q, layer, bias, window, scale, softcap)

    @abc.abstractmethod
    def _attend_own(
        self,
        q: torch.Tensor,
        layer: int,
        bias: torch.Tensor | None,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attend with q (B, H * G, D) over each row's answer."""

    @abc.abstractmethod
    def _attend_merged(
        self, q: torch.Tensor, layer: int, window: int | None, scale: float, softcap: float | None
    ) -> torch.Tensor:
        """Attend with q (B, H * G, D) over answer and prompt, copied one behind the other."""


class TorchDecodeAttention(HostDecodeAttention):
    """Implement DecodeAttention with torch's scaled_dot_product_attention.

    Rows of one capacity are read as one strided tensor.
    """

    def __init__(
        self, cache: KvCache, rows: Sequence[int], positions: Sequence[int], prompts: Sequence[int]
    ) -> None:
        super().__init__(cache, rows, positions, prompts)
        self._spans = cache.spans(rows)
        self._seen = {row: filled + 1 for row, filled in zip(rows, positions, strict=True)}
        self._prompts = dict(zip(rows, prompts, strict=True))
        # The first layer that needs them builds these, for all layers of its kind.
        self._self_reads: dict[tuple[int, int | None], list[_Read]] = {}
        self._cross_reads: list[_Read] | None = None

    def _attend_own(
        self,
        q: torch.Tensor,
        layer: int,
        bias: torch.Tensor | None,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        kind = (id(bias), window)
        if kind not in self._self_reads:
            reads = [self._self_read(span, q, bias, window) for span in self._spans]
            self._self_reads[kind] = reads
        q = q.view(len(q), self._cache.num_heads, -1, q.shape[2])
        return self._attend(q, layer, self._self_reads[kind], scale, softcap)

    def cross_attention(
        self,
        q: torch.Tensor,
        expansion: Expansion | None,
        layer: int,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> torch.Tensor:
        assert expansion is None, "TorchLoraBatch adds its products itself"
        if self._cross_reads is None:
            self._cross_reads = [self._cross_read(span, q) for span in self._spans]
        q = q.view(len(q), self._cache.num_heads, -1, q.shape[2])
        return self._attend(q, layer, self._cross_reads, scale, softcap)

    def _attend_merged(
        self, q: torch.Tensor, layer: int, window: int | None, scale: float, softcap: float | None
    ) -> torch.Tensor:
        where, counts = self._merged.padded(window)
        keys, values = self._cache.gather(layer, where).permute(2, 0, 3, 1, 4)  # (B, H, L, D) each
        seen = (torch.arange(where.shape[1], device=q.device) < counts[:, None])[:, None, None]
        q = q.reshape(len(q), self._cache.num_heads, -1, q.shape[2])
        return attend(q, keys, values, mask=seen, scale=scale, softcap=softcap).reshape(len(q), -1)

    def _self_read(
        self, span: Span, q: torch.Tensor, bias: torch.Tensor | None, window: int | None
    ) -> _Read:
        seen = self._of_span(span, self._seen)
        longest = max(seen)
        first = 0 if window is None else max(0, min(seen) - window)
        if bias is None and min(seen) == longest:
            return _Read(span, first, longest, None)
        newest = numbers_on(q.device, seen)[:, None] - 1
        distance = newest - torch.arange(first, longest, device=q.device)
        hidden = distance < 0
        if window is not None and longest > window:
            hidden |= distance >= window
        added = _blocked(hidden, q.dtype)
        if bias is not None:
            added = added + bias[:, distance.clamp(min=0)].transpose(0, 1).unsqueeze(2)
        return _Read(span, first, longest, added)

    def _cross_read(self, span: Span, q: torch.Tensor) -> _Read:
        prompts = self._of_span(span, self._prompts)
        longest = max(prompts)
        added = None
        if min(prompts) < longest:
            first = longest - numbers_on(q.device, prompts)[:, None]
            added = _blocked(torch.arange(longest, device=q.device) < first, q.dtype)
        return _Read(span, span.capacity - longest, span.capacity, added)

    def _of_span(self, span: Span, lengths: dict[int, int]) -> list[int]:
        """Return the lengths of every row of the span; 1 for a row that is not in the batch."""
        first = self._cache.starts.index(span.start)
        return [lengths.get(row, 1) for row in range(first, first + span.num_rows)]

    def _attend(
        self,
        q: torch.Tensor,
        layer: int,
        reads: Sequence[_Read],
        scale: float,
        softcap: float | None = None,
    ) -> torch.Tensor:
        if len(reads) == 1 and reads[0].span.index is None:
            return self._attend_span(q, layer, reads[0], scale, softcap).reshape(len(q), -1)
        out = torch.empty_like(q)
        for read in reads:
            span = read.span
            if span.index is None or span.offsets is None:
                raise AssertionError(f"a span of rows {span.rows} is whole, but not alone")
            spread = q.new_zeros(span.num_rows, *q.shape[1:])
            spread[span.offsets] = q[span.index]
            attended = self._attend_span(spread, layer, read, scale, softcap)
            out[span.index] = attended[span.offsets]
        return out.reshape(len(q), -1)

    def _attend_span(
        self, q: torch.Tensor, layer: int, read: _Read, scale: float, softcap: float | None
    ) -> torch.Tensor:
        keys, values = self._cache.keys_values(layer, read.span, read.start, read.stop)
        return attend(q, keys, values, mask=read.bias, scale=scale, softcap=softcap)


def _blocked(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return (n, 1, 1, L) with -inf where `hidden` (n, L) is True, else 0."""
    added = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return added.masked_fill_(hidden, -torch.inf)[:, None, None]
