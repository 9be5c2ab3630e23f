"""Hold the KV cache: planned before the model serves, never grown.

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

import torch


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
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.num_heads, self.device = num_heads, device

    @property
    def num_bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def write(self, layer: int, positions: torch.Tensor, kv: torch.Tensor) -> None:
        """Write kv (T, 2, H, D) to the cache positions (T,)."""
        self.layers[layer].index_copy_(0, positions, kv)

    def keys_values(
        self, layer: int, span: Span, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of [start, stop) of every row: views (n, H, stop - start, D)."""
        last = span.start + span.num_rows * span.capacity
        cached = self.layers[layer][span.start : last]
        rows = cached.view(span.num_rows, span.capacity, *cached.shape[1:])
        read = rows[:, start:stop].transpose(1, 3)
        return read[:, :, 0], read[:, :, 1]

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
                    index=None if is_whole else torch.tensor(members, device=self.device),
                    offsets=None if is_whole else torch.tensor(offsets, device=self.device),
                )
            )
        return spans


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
