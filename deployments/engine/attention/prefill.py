"""Lay out the prompt tokens of one step side by side, and attend over each prompt."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from deployments.engine.attention.int8_kv_cache import dequantise
from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.attention.prompt_masks import MaskRule, QueryBlock, first_seen, query_blocks
from deployments.engine.host_memory import numbers_on, on_device
from deployments.engine.kernels.backend import are_fused
from deployments.engine.kernels.ops import Segment, attend, prompt_blocks
from deployments.engine.request import PrefillChunk


class PrefillAttention(Protocol):
    """Attend with every prompt's tokens over that prompt alone."""

    def __call__(
        self,
        q: torch.Tensor,
        keys_values: torch.Tensor,
        *,
        kv_scales: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        scale: float,
        is_causal: bool,
        window: int | None = None,
        ahead: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """q (T, H * G, D), keys_values (S, 2, H, D), bias (H * G, 2 P - 1) -> (T, H * G * D).

        kv_scales: (2, H, S) of int8 keys and values. `window` and `softcap` are those of
        DecodeAttention; with a window, attention that is not causal sees `ahead` positions behind a
        token's own.
        """


class TorchPrefillAttention:
    """Attend with torch, one prompt after the other, on any device. Segments are in q's order.

    Where scores need a mask, long prompts are cut into blocks of queries: what is held at a time
    grows with a prompt's length, not with its square.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        # The first layer that needs them builds these, for all layers of its kind.
        self._blocks: dict[tuple[int, int | None], list[QueryBlock]] = {}

    def __call__(
        self,
        q: torch.Tensor,
        keys_values: torch.Tensor,
        *,
        kv_scales: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        scale: float,
        is_causal: bool,
        window: int | None = None,
        ahead: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        kind = (id(bias), window)
        if kind not in self._blocks:
            rule = MaskRule(bias, q.device, window, is_causal, softcap is not None, ahead)
            self._blocks[kind] = [each for s in self._segments for each in query_blocks(s, rule)]
        attended = []
        groups = 1 if softcap is None else q.shape[1] // keys_values.shape[2]
        for segment, mask_of in self._blocks[kind]:
            queries = q[segment.first : segment.first + segment.count].transpose(0, 1)[None]
            first = segment.first_key + first_seen(segment, window)
            seen = slice(first, segment.first_key + segment.num_keys)
            kv = keys_values[seen]
            if kv_scales is not None:
                kv = dequantise(kv, kv_scales[..., seen].permute(2, 0, 1), q.dtype)
            keys, values = kv.permute(1, 2, 0, 3).repeat_interleave(groups, 1).unsqueeze(1)
            mask = mask_of()
            out = attend(
                queries,
                keys,
                values,
                mask=mask,
                is_causal=is_causal and mask is None,
                scale=scale,
                softcap=softcap,
            )
            attended.append(out[0].transpose(0, 1).reshape(segment.count, -1))
        return torch.cat(attended)


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """Hold tokens, positions and where, each (T,); `where` are positions of the KV cache."""

    tokens: torch.Tensor
    positions: torch.Tensor
    where: torch.Tensor
    attention: PrefillAttention


@dataclass(frozen=True, slots=True)
class PrefillInputs:
    """Hold a PrefillBatch on the host. lines: (4, T): tokens, positions, where, slots."""

    lines: torch.Tensor
    segments: Sequence[Segment]

    @property
    def num_tokens(self) -> int:
        return self.lines.shape[1]

    def on(self, device: torch.device, *, is_invariant: bool = False) -> PrefillBatch:
        """Return the batch on a device.

        Args:
            is_invariant: no token's result depends on what is read beside it.
        """
        tokens, positions, where, _ = on_device(self.lines, device).unbind()
        attention: PrefillAttention = TorchPrefillAttention(self.segments)
        if are_fused(device.type):
            from deployments.engine.kernels.triton_prefill import prefill_attention

            blocks = on_device(prompt_blocks(self.segments), device)
            attention = functools.partial(prefill_attention, blocks=blocks)
        elif is_invariant:
            from deployments.engine.cpu.row_batches import RowPrefillAttention

            attention = RowPrefillAttention(self.segments)
        return PrefillBatch(tokens, positions, where, attention)


class Chunk(Protocol):
    """Name tokens of a row, positions [start, stop), that one step reads side by side."""

    @property
    def row(self) -> int: ...

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...

    @property
    def token_ids(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class Draft:
    """Hold the newest token of a row and those that may follow it; implements Chunk."""

    row: int
    start: int
    token_ids: Sequence[int]

    @property
    def stop(self) -> int:
        return self.start + len(self.token_ids)


def prefill_inputs(
    chunks: Sequence[Chunk], slots: Sequence[int], cache: KvCache, *, keeps_at_end: bool
) -> PrefillInputs:
    """Return the inputs of a prefill of these chunks.

    Args:
        slots: the adapter slot of each chunk's row.
        keeps_at_end: True for an encoder-decoder: prompts are read whole, attend to themselves and
            are cached at the end of their rows. Otherwise a prompt continues what its row holds.
    """
    pieces, segments, first = [], [], 0
    for chunk, slot in zip(chunks, slots, strict=True):
        begin, count = cache.starts[chunk.row], chunk.stop - chunk.start
        kept = begin + cache.capacities[chunk.row] - chunk.stop if keeps_at_end else begin
        piece = torch.empty((4, count), dtype=torch.long)
        piece[0] = torch.tensor(chunk.token_ids)
        piece[1] = torch.arange(chunk.start, chunk.stop)
        piece[2] = piece[1] + kept
        piece[3].fill_(slot)
        pieces.append(piece)
        segments.append(
            Segment(first, count, 0, first, count)
            if keeps_at_end
            else Segment(first, count, chunk.start, begin, chunk.stop)
        )
        first += count
    return PrefillInputs(torch.cat(pieces, 1), segments)


def last_states(states: torch.Tensor, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
    """Return the last state (n, d) of each chunk that ends its prompt, from states (T, d)."""
    stops = itertools.accumulate(chunk.stop - chunk.start for chunk in chunks)
    last = [stop - 1 for stop, chunk in zip(stops, chunks, strict=True) if chunk.is_last]
    return states[numbers_on(states.device, last)]
