"""Decode steps as CUDA graphs: one launch for a step instead of hundreds.

A graph has fixed shapes, so there is one for each bucket of batch sizes, captured when it is first
needed. Everything that changes from step to step lies in one small tensor that is copied to the
device before a replay; unused places of a bucket point to a scratch row. The picked token stays on
the device, where the next replay finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deployments.engine.attention import DecodeBatch, KernelAttention
from deployments.engine.kv_cache import KvCache
from deployments.engine.lora_bank import LoraBank
from deployments.engine.network import Network

SCRATCH_POSITIONS = 16  # capacity of the row that unused places write to


@dataclass(frozen=True, slots=True)
class RowInputs:
    """What the host tells a step about one row."""

    row: int
    position: int
    num_prompt_tokens: int
    slot: int


@dataclass(slots=True)
class _Captured:
    """graph: replayed; logits (bucket, V) and tokens (bucket,) hold its results."""

    graph: Any
    logits: torch.Tensor
    tokens: torch.Tensor


class DecodeGraphs:
    """The captured steps of one decoder.

    Args:
        cache: its last row is the scratch row.
        tokens: (rows,) the newest token of every row, the scratch row included.
    """

    def __init__(
        self, network: Network, cache: KvCache, bank: LoraBank, tokens: torch.Tensor
    ) -> None:
        self._network, self._cache, self._bank, self._tokens = network, cache, bank, tokens
        self._scratch = len(cache.capacities) - 1
        self._buckets = _buckets(self._scratch)
        shape = (6, self._buckets[-1])
        self._inputs = torch.zeros(shape, dtype=torch.long, device=network.device)
        self._captured: dict[int, _Captured] = {}
        self._layout = bank.layout
        self._pool: Any = None

    def replay(self, rows: Sequence[RowInputs]) -> tuple[torch.Tensor, torch.Tensor]:
        """One step: logits (B, V) and the largest logits' tokens (B,), both valid until the next
        replay. The tokens are in place for the next step already."""
        bucket = next(size for size in self._buckets if size >= len(rows))
        if self._layout != self._bank.layout:  # its stacks moved: the graphs read freed memory
            self._captured.clear()
            self._layout = self._bank.layout
        self._fill(rows, bucket)
        if bucket not in self._captured:
            self._captured[bucket] = self._capture(bucket)
            self._fill(rows, bucket)
        captured = self._captured[bucket]
        captured.graph.replay()
        return captured.logits[: len(rows)], captured.tokens[: len(rows)]

    def _fill(self, rows: Sequence[RowInputs], bucket: int) -> None:
        starts, capacities = self._cache.starts, self._cache.capacities
        lines = [
            (
                at.row,
                at.position,
                starts[at.row],
                starts[at.row] + capacities[at.row],
                at.num_prompt_tokens,
                at.slot,
            )
            for at in rows
        ]
        scratch = self._scratch
        idle = (scratch, 0, starts[scratch], starts[scratch] + capacities[scratch], 1, 0)
        lines += [idle] * (bucket - len(rows))
        host = torch.tensor(lines).t().contiguous().pin_memory()
        self._inputs[:, :bucket].copy_(host, non_blocking=True)

    def _step(self, bucket: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, positions, starts, ends, prompts, slots = self._inputs[:, :bucket].unbind()
        batch = DecodeBatch(
            tokens=self._tokens[rows],
            positions=positions,
            where=starts + positions,
            attention=KernelAttention(self._cache, starts, ends, positions + 1, prompts),
        )
        route = self._bank.kernel_route(slots)
        logits = self._network.logits(self._network.decode(self._cache, batch, route))
        tokens = logits.argmax(-1)
        self._tokens.index_copy_(0, rows, tokens)
        return logits, tokens

    def _capture(self, bucket: int) -> _Captured:
        """Capture on scratch rows alone: what is run to warm up changes nothing that is used."""
        self._fill((), bucket)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits, tokens = self._step(bucket)
        self._pool = self._pool or graph.pool()
        return _Captured(graph, logits, tokens)


def _buckets(num_rows: int) -> tuple[int, ...]:
    """1, 2, 4, 8, 16, 24, 32, ... up to the number of rows."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < num_rows:
        sizes.append(sizes[-1] + max(8, sizes[-1] // 4 // 8 * 8))
    return tuple(size for size in sizes if size < num_rows) + (num_rows,)
