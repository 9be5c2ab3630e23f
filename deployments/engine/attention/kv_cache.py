"""Key/value memory: planned before the model serves, never grown.

A row owns `capacity` positions for as long as its answer runs; the scheduler admits a request only
into a row that holds its prompt and its longest answer, so there is no out-of-memory under load.
When memory does not hold every row at full length, most rows are short ones: a few long questions
and many short ones then run together. Rows of one capacity lie side by side, so attention reads
them as one strided tensor, without a copy:

    layer: (T, 2, H, D)      T: positions of all rows; 2: keys, values; H: key/value heads
    rows of one capacity S:  (n, S, 2, H, D), a view

A causal model fills a row from the front. T5 fills it from both ends: the decoder's own keys and
values from the front, the encoder's, computed once, against the end.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

_ALIGNMENT = 16  # capacities are multiples of it
_LONG_ROWS = 8  # one row in so many has full length when memory is short
_SHORTEST = 8  # a short row holds at least this fraction of a long one


def plan_rows(
    max_rows: int, num_positions: int, bytes_per_position: int, budget_bytes: int
) -> tuple[int, ...]:
    """Capacities of the rows, short ones first; their memory is within the budget.

    Args:
        num_positions: prompt and answer at their longest.
        bytes_per_position: keys and values of all layers.

    Raises:
        ValueError: not even one full row fits.
    """
    full = -(-num_positions // _ALIGNMENT) * _ALIGNMENT
    affordable = budget_bytes // bytes_per_position
    if affordable < full:
        raise ValueError(
            f"{budget_bytes / 2**20:.0f} MiB of key/value memory hold {affordable} positions; one "
            f"answer may need {full}: raise engine.kv_memory_mib to at least "
            f"{-(-full * bytes_per_position // 2**20)}, or lower engine.max_input_tokens"
        )
    for num_rows in range(max_rows, 1, -1):
        if num_rows * full <= affordable:
            return (full,) * num_rows
        num_long = max(1, num_rows // _LONG_ROWS)
        num_short = num_rows - num_long
        rest = (affordable - num_long * full) // num_short
        short = min(full, rest // _ALIGNMENT * _ALIGNMENT)
        if short * _SHORTEST >= full:
            return (short,) * num_short + (full,) * num_long
    return (full,)


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring rows of one capacity that a step reads as one tensor.

    `index` are the batch positions of the active rows, `offsets` their places in the span; the
    two are None when the whole batch is the span, in order: no gather is needed.
    """

    start: int  # position in the memory where the first row begins
    num_rows: int
    capacity: int
    rows: tuple[int, ...]  # the active rows in it
    index: torch.Tensor | None  # (b,)
    offsets: torch.Tensor | None  # (b,)


class KvCache:
    """The memory and where each row lies in it.

    Args:
        capacities: positions of each row, equal ones side by side.
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
        # Zeros, not empty memory: masked positions are read too, and 0 * NaN is NaN.
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.num_heads, self.device = num_heads, device

    @property
    def num_bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def write(self, layer: int, positions: torch.Tensor, kv: torch.Tensor) -> None:
        """kv (T, 2, H, D) -> the positions (T,) of the memory."""
        self.layers[layer].index_copy_(0, positions, kv)

    def segment(self, layer: int, row: int, start: int, stop: int) -> torch.Tensor:
        """Positions [start, stop) of a row: a view (stop - start, 2, H, D)."""
        first = self.starts[row]
        return self.layers[layer][first + start : first + stop]

    def keys_values(
        self, layer: int, span: Span, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions [start, stop) of every row of the span: views, both (n, H, stop - start, D)."""
        last = span.start + span.num_rows * span.capacity
        memory = self.layers[layer][span.start : last]
        rows = memory.view(span.num_rows, span.capacity, *memory.shape[1:])
        read = rows[:, start:stop].transpose(1, 3)
        return read[:, :, 0], read[:, :, 1]

    def spans(self, rows: Sequence[int]) -> list[Span]:
        """The active rows of a step, by capacity; `rows` ascend."""
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
    """Positions in `rows` of neighbours with equal capacity."""
    members: list[int] = []
    for i, row in enumerate(rows):
        if members and capacities[row] != capacities[rows[members[-1]]]:
            yield members
            members = []
        members.append(i)
    if members:
        yield members
