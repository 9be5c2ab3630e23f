"""Run attention and LoRA row by row on a CPU: what a row gets depends on nothing beside it."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.attention.prefill import TorchPrefillAttention
from deployments.engine.attention.torch_decode import HostDecodeAttention
from deployments.engine.cpu.row_kernels import AttentionStep, adapt_rows, attend_rows
from deployments.engine.cpu.threads import Threads
from deployments.engine.kernels.ops import Expansion, Segment
from deployments.engine.lora.layers import AddedLater, LoraStack
from deployments.engine.lora.stacks import LoraStacks

_TOGETHER = 16  # tokens of a prompt that read each key once
_WORTH_A_THREAD = 1 << 22  # multiplications: fewer take less time than another thread to wake


def compile_rows() -> None:
    """Compile what runs row by row, or read what was compiled before.

    Raises:
        Exception: whatever Numba and LLVM raise on a processor that they cannot compile this for.
    """
    numbers = np.zeros(0, np.int64)
    counter = np.zeros(2, np.int64).ctypes.data
    step = AttentionStep(0, 0, 0, 0, 0, False, 1, 1, 1, 1.0, 0.0)
    attend_rows(counter, np.zeros(1, np.int64), numbers, numbers, step)
    rows = np.zeros((0, 1), np.float32)
    adapt_rows(counter, rows, numbers, numbers, numbers, numbers, numbers, 1, rows)


@dataclass(frozen=True, slots=True)
class _Adapted:
    """Hold the modules of one layer that adapters change, as `adapt_rows` takes them.

    columns: first and last output of each in the layer, and where its product begins.
    """

    a: Any
    b: Any
    sizes: Any
    columns: tuple[tuple[int, int, int], ...]
    width: int


class RowLora:
    """Know where the weights of all adapters lie. Valid while the stacks' `layout` stays."""

    def __init__(self, stacks: LoraStacks) -> None:
        self.layout = stacks.layout
        self.stacks = stacks
        self.modules = stacks.by_layer()
        self.rescaled = {
            name
            for name, own in self.modules.items()
            if any(stack.gains is not None for _, stack in own)
        }
        self.adapted = {name: _adapted(own) for name, own in self.modules.items() if own}


def _adapted(modules: Sequence[tuple[int, LoraStack]]) -> _Adapted:
    a, b = (np.array([getattr(stack, half).data_ptr() for _, stack in modules]) for half in "ab")
    sizes = [stack.b.shape[2] for _, stack in modules]
    ends = list(itertools.accumulate(sizes))
    columns = tuple(
        (start, start + size, end - size)
        for (start, _), size, end in zip(modules, sizes, ends, strict=True)
    )
    return _Adapted(a, b, np.array(sizes), columns, ends[-1])


class RowLoraBatch(AddedLater):
    """Implement LoraBatch (lora/layers.py): a row's product reads its own adapter alone.

    Args:
        slots: of each row.
    """

    def __init__(self, lora: RowLora, slots: Sequence[int]) -> None:
        self._lora = lora
        self._slots = np.array(slots, np.int64)

    def adapts(self, layer: str) -> bool:
        return layer in self._lora.adapted or layer in self._lora.rescaled

    def rescales(self, layer: str) -> bool:
        return layer in self._lora.rescaled

    def add(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: Expansion | None = None
    ) -> None:
        own = self._lora.adapted.get(layer)
        if own is None:
            return
        self._rescale(layer, y)
        stacks = self._lora.stacks
        wide, added = x.float().contiguous(), torch.zeros(len(y), own.width)
        rows, out, slots, ranks = wide.numpy(), added.numpy(), self._slots, stacks.ranks
        work = len(y) * stacks.rank * (wide.shape[1] + own.width)
        _shared(
            lambda counter: adapt_rows(
                counter, rows, slots, ranks, own.a, own.b, own.sizes, stacks.rank, out
            ),
            work,
        )
        for start, stop, at in own.columns:
            y[:, start:stop].add_(added[:, at : at + stop - start])

    def embed(self, layer: str, tokens: torch.Tensor, y: torch.Tensor) -> None:
        ranks = self._lora.stacks.ranks
        self._rescale(layer, y)
        for start, stack in self._lora.modules.get(layer, ()):
            for row, (slot, token) in enumerate(zip(self._slots, tokens, strict=True)):
                a, b = stack.a[slot, : ranks[slot], token, None], stack.b[slot, : ranks[slot]]
                y[row, start : start + b.shape[1]].add_((a * b).sum(0))

    def _rescale(self, layer: str, y: torch.Tensor) -> None:
        if layer in self._lora.rescaled:
            for start, stack in self._lora.modules[layer]:
                if stack.gains is not None:
                    y[:, start : start + stack.gains.shape[1]].mul_(stack.gains[self._slots])

    def expansion(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: Expansion | None
    ) -> None:
        self.add(layer, x, y)


class RowDecodeAttention(HostDecodeAttention):
    """Implement DecodeAttention (attention/kv_cache.py) with the compiled rows' attention."""

    def __init__(
        self, cache: KvCache, rows: Sequence[int], positions: Sequence[int], prompts: Sequence[int]
    ) -> None:
        super().__init__(cache, rows, positions, prompts)
        self._starts = np.array([cache.starts[row] for row in rows], np.int64)
        ends = self._starts + [cache.capacities[row] for row in rows]
        self._seen = np.array(positions, np.int64) + 1
        self._prompts = np.array(prompts, np.int64)
        self._prompt_starts = ends - self._prompts
        self._pieces = np.arange(len(rows) + 1)

    def _attend_own(
        self,
        q: torch.Tensor,
        layer: int,
        bias: torch.Tensor | None,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> torch.Tensor:
        counts = self._seen if window is None else np.minimum(self._seen, window)
        firsts = self._starts + self._seen - counts
        rows_at = (self._pieces, firsts, counts)
        return _attend(q, self._cache.layers[layer], rows_at, bias, scale, softcap)

    def cross_attention(
        self,
        q: torch.Tensor,
        expansion: Expansion | None,
        layer: int,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> torch.Tensor:
        assert expansion is None, "RowLoraBatch adds its products itself"
        cached = self._cache.layers[layer]
        rows_at = (self._pieces, self._prompt_starts, self._prompts)
        return _attend(q, cached, rows_at, None, scale, softcap)

    def _attend_merged(
        self, q: torch.Tensor, layer: int, window: int | None, scale: float, softcap: float | None
    ) -> torch.Tensor:
        where, counts = self._merged.padded(window)
        firsts = np.arange(len(where)) * where.shape[1]
        kv = self._cache.gather(layer, where).flatten(0, 1)
        return _attend(q, kv, (self._pieces, firsts, counts.numpy()), None, scale, softcap)


class RowPrefillAttention:
    """Implement PrefillAttention (attention/prefill.py). A causal prompt's tokens are rows, so that
    what they get is what a decode step would have given them."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        positions = [np.arange(s.position, s.position + s.count) for s in segments]
        self._seen = np.concatenate(positions).astype(np.int64) + 1
        first_keys, sizes = ([s.first_key for s in segments], [s.count for s in segments])
        self._starts = np.repeat(first_keys, sizes).astype(np.int64)
        cuts = [range(s.first, s.first + s.count, _TOGETHER) for s in segments]
        self._pieces = np.array([*(at for cut in cuts for at in cut), sum(sizes)])

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
        assert kv_scales is None, "int8 keys and values are a GPU's"
        if not is_causal:
            seen = {"bias": bias, "window": window, "ahead": ahead, "softcap": softcap}
            return self._of_whole_prompts(q, keys_values, scale=scale, **seen)
        counts = self._seen if window is None else np.minimum(self._seen, window)
        rows_at = (self._pieces, self._starts + self._seen - counts, counts)
        return _attend(q, keys_values, rows_at, None, scale, softcap)

    def _of_whole_prompts(
        self, q: torch.Tensor, keys_values: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """Attend as torch does, each prompt by itself, in memory that lies the same each time."""
        attended = []
        for s in self._segments:
            own = q[s.first : s.first + s.count].clone()
            kv = keys_values[s.first_key : s.first_key + s.num_keys].clone()
            alone = TorchPrefillAttention((Segment(0, s.count, s.position, 0, s.num_keys),))
            attended.append(alone(own, kv, is_causal=False, **options))
        return torch.cat(attended)


def _attend(
    q: torch.Tensor,
    keys_values: torch.Tensor,
    rows_at: tuple[Any, Any, Any],
    bias: torch.Tensor | None,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Attend with q (T, H * G, D), each row as if it were alone; returns (T, H * G * D).

    Args:
        rows_at: pieces, firsts and counts of `attend_rows`.
    """
    queries = q.contiguous()
    tokens, heads, dim = q.shape
    kv_heads = keys_values.shape[2]
    out = torch.empty(tokens, heads * dim, dtype=q.dtype)
    step = AttentionStep(
        queries.data_ptr(),
        out.data_ptr(),
        keys_values.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else bias.stride(0),
        q.dtype == torch.bfloat16,
        kv_heads,
        heads // kv_heads,
        dim,
        scale,
        softcap or 0.0,
    )
    work = 2 * int(rows_at[2].sum()) * heads * dim
    _shared(lambda counter: attend_rows(counter, *rows_at, step), work)
    return out


@functools.cache
def _threads() -> Threads:
    return Threads()


def _shared(task: Callable[[int], None], work: int) -> None:
    """Run a task on as many threads as torch, if its multiplications are worth it.

    Its argument is the address of a counter from which the threads take their pieces; it returns
    when nothing is left to take, and so is done when all of them have returned.
    """
    counter = np.zeros(2, np.int64)
    address = counter.ctypes.data
    count = torch.get_num_threads() if work >= _WORTH_A_THREAD else 1
    if count == 1:
        task(address)
    else:
        _threads().run(lambda thread: task(address), count)
