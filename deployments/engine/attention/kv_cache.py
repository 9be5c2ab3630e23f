"""Hold the KV cache, planned before the model serves and never grown, and attend over it.

A row owns `capacity` positions for as long as its answer runs. The scheduler admits a request only
into a row that holds its prompt and its longest answer, so there is no out-of-memory under load.
When the budget does not hold every row at full length, most rows are short ones: a few long
questions and many short ones then run together. Rows of one capacity are neighbours, so attention
reads them as one strided tensor, without a copy:

    layer: (T, 2, H, D)      T: positions of all rows; 2: keys, values; H: key/value heads
    rows of one capacity S:  (n, S, 2, H, D), a view

A causal model fills a row from the front. T5 fills it from both ends: the decoder's own keys and
values from the front, the encoder's, computed once, at the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from deployments.engine.host_memory import huge_zeros, numbers_on
from deployments.engine.kernels.ops import Expansion, HeadNorm, Rope, rotate_

# Rows begin at multiples of it, so that they lie alike in a layout of blocks (cpu/attention.py).
ALIGNMENT = 16


def are_aligned(capacities: Sequence[int]) -> bool:
    """Return whether rows of these capacities may be copied to each other."""
    return all(capacity % ALIGNMENT == 0 for capacity in capacities)


@dataclass(frozen=True, slots=True)
class Span:
    """Describe neighbouring rows of one capacity that a step reads as one tensor.

    `index` holds the batch positions of the active rows, `offsets` their positions in the span.
    Both are None when the whole batch is the span, in order: then no gather is needed.
    """

    start: int  # cache position where the first row begins
    num_rows: int
    capacity: int
    rows: tuple[int, ...]  # the active rows in it
    index: torch.Tensor | None  # (b,)
    offsets: torch.Tensor | None  # (b,)


class KvCache:
    """Hold the keys and values of every layer, and where each row lies in them.

    Args:
        capacities: positions of each row; rows of equal capacity are neighbours.
    """

    def __init__(
        self,
        capacities: Sequence[int],
        *,
        num_layers: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.capacities = tuple(capacities)
        self.starts = [sum(capacities[:row]) for row in range(len(capacities))]
        shape = (sum(capacities), 2, num_heads, head_dim)
        # Zeros, not empty tensors: masked positions are read too, and 0 * NaN is NaN.
        if device.type == "cpu":
            self.layers = [huge_zeros(shape, dtype=dtype) for _ in range(num_layers)]
        else:  # in one piece: a GPU's allocator rounds each up to 2 MiB
            whole = torch.zeros((num_layers, *shape), dtype=dtype, device=device)
            self.layers = list(whole.unbind())
        self.num_heads, self.device = num_heads, device
        # Of int8 keys and values (int8_kv_cache.py): (2, H, T) for each layer.
        self.scales: Sequence[torch.Tensor | None] = [None] * num_layers

    @property
    def num_bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def write(self, layer: int, positions: torch.Tensor, kv: torch.Tensor) -> None:
        """Write kv (T, 2, H, D) to the cache positions (T,)."""
        self.layers[layer].index_copy_(0, positions, kv)

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` positions of a row to another one, or up to 15 more: whole blocks
        of ALIGNMENT positions, whatever lies how in them. Rows must be aligned."""
        read, written = copied_positions(self.starts[source], self.starts[target], count)
        copied = [layer[read] for layer in self.layers]
        torch._foreach_copy_([layer[written] for layer in self.layers], copied)

    def keys_values(
        self, layer: int, span: Span, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of [start, stop) of every row: views (n, H, stop - start, D)."""
        last = span.start + span.num_rows * span.capacity
        cached = self.layers[layer][span.start : last]
        rows = cached.view(span.num_rows, span.capacity, *cached.shape[1:])
        read = rows[:, start:stop].transpose(1, 3)
        return read[:, :, 0], read[:, :, 1]

    def gather(self, layer: int, where: torch.Tensor) -> torch.Tensor:
        """Return a copy of the keys and values (..., 2, H, D) of positions (...)."""
        return self.layers[layer][where]

    def spans(self, rows: Sequence[int]) -> list[Span]:
        """Group the active rows of a step, which ascend, by capacity."""
        spans = []
        for members in _by_capacity(rows, self.capacities):
            first, last = rows[members[0]], rows[members[-1]]
            num_rows = last - first + 1
            is_whole = len(members) == len(rows) == num_rows
            offsets = [rows[i] - first for i in members]
            spans.append(
                Span(
                    start=self.starts[first],
                    num_rows=num_rows,
                    capacity=self.capacities[first],
                    rows=tuple(rows[i] for i in members),
                    index=None if is_whole else numbers_on(self.device, members),
                    offsets=None if is_whole else numbers_on(self.device, offsets),
                )
            )
        return spans


def copied_positions(source: int, target: int, count: int) -> tuple[slice, slice]:
    """Return which positions `KvCache.copy` reads and writes, given where the rows begin."""
    num = -(-count // ALIGNMENT) * ALIGNMENT
    return slice(source, source + num), slice(target, target + num)


def _by_capacity(rows: Sequence[int], capacities: Sequence[int]) -> Iterator[list[int]]:
    """Yield the positions in `rows` of each run of rows with equal capacity."""
    members: list[int] = []
    for i, row in enumerate(rows):
        if members and capacities[row] != capacities[rows[members[-1]]]:
            yield members
            members = []
        members.append(i)
    if members:
        yield members


class DecodeAttention(Protocol):
    """Attend over the KV cache; rows of different lengths run together.

    `expansion` is the LoRA part of the product that gave qkv or q, not yet added to it.
    """

    positions: torch.Tensor  # (B,) own positions of each row filled so far

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
        """Write the newest keys and values to the cache and attend over the row's own positions.

        Args:
            qkv: (B, H * G + 2 H, D), G query heads for each key/value head. May be changed.
            bias: (H, S) added to a score by distance from the newest position.
            norm: of queries and keys, with their expansion and before they are rotated.
            window: attend over that many positions at most, the newest among them.
            softcap: scores s become softcap * tanh(s / softcap).
            with_prompt: under the same softmax, attend over the whole prompt at the end of the row
                too; there is no bias then.

        Returns:
            (B, H * G * D)
        """

    def cross_attention(
        self,
        q: torch.Tensor,
        expansion: Expansion | None,
        layer: int,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> torch.Tensor:
        """Return q (B, H * G, D) attended over the prompt at the end of the row: (B, H * G * D)."""


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Hold the rows of a decode step; tokens (B,) are their newest, not yet in the cache."""

    tokens: torch.Tensor
    attention: DecodeAttention


class NewPositions:
    """Norm and rotate a step's queries and keys, and write its keys and values to the cache.

    Args:
        rows: ascending. positions: own positions of each row filled so far.
    """

    def __init__(self, cache: KvCache, rows: Sequence[int], positions: Sequence[int]) -> None:
        self._cache, device = cache, cache.device
        self.positions = numbers_on(device, positions)
        where = [cache.starts[row] + filled for row, filled in zip(rows, positions, strict=True)]
        self._where = numbers_on(device, where)
        self._ropes: dict[int, Rope] = {}  # made by the first layer that needs one, for all

    def write(
        self, layer: int, qkv: torch.Tensor, norm: HeadNorm | None, rope: Rope | None
    ) -> torch.Tensor:
        """Write k and v of qkv (B, H * G + 2 H, D), and return its queries (B, H * G, D)."""
        heads, (rows, all_heads, dim) = self._cache.num_heads, qkv.shape
        num_queries = all_heads - 2 * heads
        own = None
        if rope is not None:
            if id(rope) not in self._ropes:
                self._ropes[id(rope)] = rope.at(self.positions)
            own = self._ropes[id(rope)]
        if norm is not None or own is not None:
            rotate_(qkv[:, : num_queries + heads], norm, own)
        self._cache.write(layer, self._where, qkv[:, num_queries:].view(rows, 2, heads, dim))
        return qkv[:, :num_queries]
