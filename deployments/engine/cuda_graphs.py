"""Capture steps as CUDA graphs: one launch instead of hundreds.

A graph has fixed shapes, so there is one for each bucket of sizes, captured when it is first
needed, or by `warm_up` before the first request. Everything that changes from step to step is in
small tensors that are copied to the device before a replay; the padding of a bucket points to a
scratch row. The picked token stays on the device, where the next replay reads it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from deployments.engine.attention.kv_cache import DecodeBatch, KvCache
from deployments.engine.attention.prefill import PrefillBatch, PrefillInputs
from deployments.engine.host_memory import on_device, send
from deployments.engine.kernels.ops import BLOCK_M, prompt_blocks
from deployments.engine.lora.pool import LoraPool
from deployments.engine.models.base import Model

SCRATCH_POSITIONS = 16  # capacity of the row that padding writes to
_DRAFT_BUCKETS = (2, 4, 8, 16, 32)  # tokens, newest and guessed
_PROMPT_BUCKETS = (64, 128, 256, 512, 1024)  # tokens; longer prefills are not bound by launches
_PROMPTS = 16  # at most, in one graph


@dataclass(frozen=True, slots=True)
class RowInputs:
    """Hold what the host tells a step about one row, or about one token of several of a row.

    blocks_eos: its token may not be one that ends the answer.
    token: its input, of a step with guessed tokens; otherwise the row's newest one is.
    """

    row: int
    position: int
    num_prompt_tokens: int
    slot: int
    blocks_eos: bool = False
    token: int = 0


SizeT = TypeVar("SizeT")


class _Captures(Generic[SizeT]):
    """Keep the graphs of one function by size, and the results that each writes to.

    Without CUDA (in Triton's interpreter) the function just runs.
    """

    def __init__(
        self,
        lora_pool: LoraPool,
        step: Callable[[SizeT], tuple[torch.Tensor, ...]],
        device: torch.device,
    ) -> None:
        self._lora_pool, self._step = lora_pool, step
        self._can_capture = device.type == "cuda"
        self._graphs: dict[SizeT, tuple[Any, tuple[torch.Tensor, ...]]] = {}
        self._layout = lora_pool.layout
        self._pool: Any = None
        self._tried: set[SizeT] = set()

    def replay(
        self, size: SizeT, fill: Callable[[], None], fill_idle: Callable[[], None]
    ) -> tuple[torch.Tensor, ...]:
        """Run the step of this size with the inputs that `fill` writes.

        A capture runs on the inputs of `fill_idle`, so that it changes nothing that is used.
        """
        if not self._can_capture:
            fill()
            return self._step(size)
        if self._layout != self._lora_pool.layout:  # the weights moved: the graphs read freed ones
            self._graphs.clear()
            self._pool = None  # it went with the last graph
            self._layout = self._lora_pool.layout
        if size not in self._graphs:
            fill_idle()
            self._graphs[size] = self._capture(size)
        fill()
        graph, results = self._graphs[size]
        graph.replay()
        return results

    def prepare(self, sizes: Sequence[SizeT], fill_idle: Callable[[SizeT], None]) -> None:
        """Run steps of these sizes, which loads their kernels, before any of them is captured.

        Between captures their memory would come on top of what the captured ones hold.
        """
        if self._can_capture:
            for size in sizes:
                fill_idle(size)
                self._try(size)
                self._tried.add(size)

    def _try(self, size: SizeT) -> None:
        stream = _side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step(size)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self, size: SizeT) -> tuple[Any, tuple[torch.Tensor, ...]]:
        if size not in self._tried:
            self._try(size)
        self._tried.discard(size)
        graph = torch.cuda.CUDAGraph()
        # Meanwhile other threads pin memory for adapters, which the default would refuse them.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = self._step(size)
        self._pool = self._pool or graph.pool()
        return graph, results


@functools.cache
def _side_stream() -> Any:
    """Return the stream that every capture is tried on first: cuBLAS keeps 32 MiB for each one."""
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


class _StepSize(NamedTuple):
    """Name a captured step by its tokens, padding included; `shares_rows`: several may be of one
    row, and all come from the host."""

    num_tokens: int
    shares_rows: bool = False


class DecodeGraphs:
    """Hold the captured decode steps of one decoder.

    Args:
        cache: its last row is the scratch row.
        tokens: (rows,) the newest token of every row, the scratch row included.
        eos_ids: tokens that end an answer.
    """

    max_draft_tokens = _DRAFT_BUCKETS[-1]

    def __init__(
        self,
        model: Model,
        cache: KvCache,
        lora_pool: LoraPool,
        tokens: torch.Tensor,
        eos_ids: Sequence[int],
    ) -> None:
        self._model, self._cache, self._lora_pool, self._tokens = model, cache, lora_pool, tokens
        self._scratch = len(cache.capacities) - 1
        steps = [_StepSize(size) for size in _buckets(self._scratch)]
        drafts = [_StepSize(size, shares_rows=True) for size in _DRAFT_BUCKETS]
        self._sizes = sorted([*steps, *drafts])
        self._eos_ids = on_device(torch.tensor(eos_ids, dtype=torch.long), model.device)
        shape = (8, self._sizes[-1].num_tokens)
        self._inputs = torch.zeros(shape, dtype=torch.long, device=model.device)
        self._captures = _Captures(lora_pool, self._step, model.device)

    def warm_up(self) -> None:
        """Capture every size."""
        self._captures.prepare(self._sizes[::-1], lambda size: self._fill((), size))
        for size in reversed(self._sizes):
            self._replay((), size)

    def replay(self, rows: Sequence[RowInputs]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one step and return logits (B, V) and their argmax (B,), valid until the next replay.

        The tokens are stored as the input of the next step already.
        """
        return self._replay(rows, self._size_for(len(rows), shares_rows=False))

    def replay_drafts(self, inputs: Sequence[RowInputs]) -> tuple[torch.Tensor, torch.Tensor]:
        """Do what `replay` does for several tokens of each row, neighbours in its text: their
        logits are those behind each. What is stored as the rows' newest tokens is undefined.

        inputs: at most `max_draft_tokens`.
        """
        return self._replay(inputs, self._size_for(len(inputs), shares_rows=True))

    def replay_scratch(self, token: int, num_prompt_tokens: int, slot: int) -> torch.Tensor:
        """Return the logits (1, V) of `token` as the first of an answer in the scratch row."""
        row, size = RowInputs(self._scratch, 0, num_prompt_tokens, slot), self._sizes[0]

        def fill() -> None:
            self._tokens[self._scratch].fill_(token)  # after a capture, which writes its own
            self._fill((row,), size)

        return self._captures.replay(size, fill, lambda: self._fill((), size))[0]

    def _size_for(self, count: int, *, shares_rows: bool) -> _StepSize:
        return next(
            size
            for size in self._sizes
            if size.shares_rows == shares_rows and size.num_tokens >= count
        )

    def _replay(
        self, inputs: Sequence[RowInputs], size: _StepSize
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits, tokens = self._captures.replay(
            size, lambda: self._fill(inputs, size), lambda: self._fill((), size)
        )
        return logits[: len(inputs)], tokens[: len(inputs)]

    def _fill(self, inputs: Sequence[RowInputs], size: _StepSize) -> None:
        starts, capacities = self._cache.starts, self._cache.capacities
        lines = [
            (
                at.row,
                at.position,
                starts[at.row],
                starts[at.row] + capacities[at.row],
                at.num_prompt_tokens,
                at.slot,
                int(at.blocks_eos),
                at.token,
            )
            for at in inputs
        ]
        scratch = self._scratch
        idle = (scratch, 0, starts[scratch], starts[scratch] + capacities[scratch], 1, 0, 0, 0)
        lines += [idle] * (size.num_tokens - len(inputs))
        send(torch.tensor(lines).t().contiguous(), self._inputs[:, : size.num_tokens])

    def _step(self, size: _StepSize) -> tuple[torch.Tensor, torch.Tensor]:
        from deployments.engine.attention.fused import TritonDecodeAttention
        from deployments.engine.kernels.triton_pick import pick

        inputs = self._inputs[:, : size.num_tokens].unbind()
        rows, positions, starts, ends, prompts, slots, blocks, tokens = inputs
        attention = TritonDecodeAttention(
            self._cache,
            starts,
            ends,
            positions,
            prompts,
            is_invariant=self._model.is_invariant,
            shares_rows=size.shares_rows,
        )
        lora = self._lora_pool.triton_batch(slots, is_invariant=self._model.is_invariant)
        batch = DecodeBatch(tokens if size.shares_rows else self._tokens[rows], attention)
        logits = self._model.logits(self._model.decode(self._cache, batch, lora), lora)
        return logits, pick(logits, self._eos_ids, blocks, rows, self._tokens)


class PrefillGraphs:
    """Hold the captured prefills of a few prompts, where launches take more time than arithmetic.

    Args:
        cache: its last row is the scratch row.
    """

    def __init__(self, model: Model, cache: KvCache, lora_pool: LoraPool) -> None:
        self._model, self._cache, self._lora_pool = model, cache, lora_pool
        device = model.device
        longest = _PROMPT_BUCKETS[-1]
        # Uncaptured, every size is a bucket: an interpreter has no time for padding.
        self._buckets = _PROMPT_BUCKETS if device.type == "cuda" else range(1, longest + 1)
        self._inputs = torch.zeros((4, longest), dtype=torch.long, device=device)
        num_blocks = _num_blocks(longest)
        self._blocks = torch.zeros((num_blocks, 5), dtype=torch.int32, device=device)
        self._captures = _Captures(lora_pool, self._step, model.device)

    @property
    def scratch_start(self) -> int:
        """Return the cache position where the scratch row begins."""
        return self._cache.starts[-1]

    def takes(self, inputs: PrefillInputs) -> bool:
        return inputs.num_tokens <= _PROMPT_BUCKETS[-1] and len(inputs.segments) <= _PROMPTS

    def warm_up(self) -> None:
        """Capture every bucket."""
        self._captures.prepare(self._buckets[::-1], lambda bucket: self._fill(_NOTHING, bucket))
        for bucket in reversed(self._buckets):
            self._replay(_NOTHING, bucket)

    def replay(self, inputs: PrefillInputs) -> torch.Tensor:
        """Return the states (T, d) behind the tokens, valid until the next replay."""
        bucket = next(size for size in self._buckets if size >= inputs.num_tokens)
        return self._replay(inputs, bucket)[0][: inputs.num_tokens]

    def _replay(self, inputs: PrefillInputs, bucket: int) -> tuple[torch.Tensor, ...]:
        return self._captures.replay(
            bucket, lambda: self._fill(inputs, bucket), lambda: self._fill(_NOTHING, bucket)
        )

    def _fill(self, inputs: PrefillInputs, bucket: int) -> None:
        idle = torch.tensor([0, 0, self._cache.starts[-1], 0])[:, None]
        unused = idle.expand(4, bucket - inputs.num_tokens)
        send(torch.cat([inputs.lines, unused], 1), self._inputs[:, :bucket])
        num_blocks = _num_blocks(bucket)
        send(prompt_blocks(inputs.segments, num_blocks), self._blocks[:num_blocks])

    def _step(self, bucket: int) -> tuple[torch.Tensor]:
        from deployments.engine.kernels.triton_prefill import prefill_attention

        tokens, positions, where, slots = self._inputs[:, :bucket].unbind()
        blocks = self._blocks[: _num_blocks(bucket)]
        attention = functools.partial(prefill_attention, blocks=blocks)
        batch = PrefillBatch(tokens, positions, where, attention)
        lora = self._lora_pool.triton_batch(slots, is_invariant=self._model.is_invariant)
        return (self._model.prefill(self._cache, batch, lora),)


_NOTHING = PrefillInputs(torch.zeros((4, 0), dtype=torch.long), ())


def _num_blocks(num_tokens: int) -> int:
    """Return enough blocks for any split of these tokens into at most _PROMPTS prompts."""
    return num_tokens // BLOCK_M + _PROMPTS


def _buckets(num_rows: int) -> tuple[int, ...]:
    """Return 1, 2, 4, 8, 16, 24, 32, ... up to the number of rows."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < num_rows:
        sizes.append(sizes[-1] + max(8, sizes[-1] // 4 // 8 * 8))
    return tuple(size for size in sizes if size < num_rows) + (num_rows,)
