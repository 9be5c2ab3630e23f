"""An adapter in one block of main memory, in the numbers that the bank's device computes with.

Loading it is one copy to the device and a few launches there, instead of two small copies for each
adapted layer (288 for the query and value projections of flan-t5-xl, docs/adapters.md). For a GPU
the block is pinned: the copy needs no staging, and nobody waits for it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from deployments.engine.adapter_reading import AdapterWeights


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """`block` holds, for each module of `shapes` in turn, a (r, in) and then b transposed (r, out).

    shapes: module path -> (r, in, out).
    """

    block: torch.Tensor
    shapes: Mapping[str, tuple[int, int, int]]

    @property
    def rank(self) -> int:
        return max(rank for rank, _, _ in self.shapes.values())

    @property
    def num_bytes(self) -> int:
        return self.block.nbytes

    def to(self, device: torch.device) -> "PackedAdapter":
        """The same with its block on `device`; from pinned memory the copy is only begun."""
        return PackedAdapter(self.block.to(device, non_blocking=True), self.shapes)

    def views(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Module, a (r, in), b transposed (r, out): parts of the block."""
        start = 0
        for module, (rank, inner, outer) in self.shapes.items():
            middle, stop = start + rank * inner, start + rank * (inner + outer)
            yield (
                module,
                self.block[start:middle].view(rank, inner),
                self.block[middle:stop].view(rank, outer),
            )
            start = stop


def pack(weights: AdapterWeights, dtype: torch.dtype, *, pinned: bool) -> PackedAdapter:
    """Any thread may call it."""
    shapes = {
        module: (pair.a.shape[0], pair.a.shape[1], pair.b.shape[0])
        for module, pair in weights.pairs.items()
    }
    size = sum(rank * (inner + outer) for rank, inner, outer in shapes.values())
    packed = PackedAdapter(torch.empty(size, dtype=dtype, pin_memory=pinned), shapes)
    for module, a, b in packed.views():
        pair = weights.pairs[module]
        a.copy_(pair.a)
        b.copy_(pair.b.t())
    return packed
