"""An adapter in one block of main memory, in the numbers that the bank's device computes with.

Loading it is one copy to the device and a few launches there, instead of two small copies for each
adapted layer (288 for the query and value projections of flan-t5-xl, docs/adapters.md). For a GPU
the block is pinned: the copy needs no staging, and nobody waits for it.
"""

from dataclasses import dataclass

import torch

from deployments.engine.adapter_reading import AdapterWeights

Shapes = tuple[tuple[str, int, int, int], ...]
"""(module path, r, in, out) of each adapted layer, in the order of the block."""


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """`block` (n,) holds, for each module of `shapes`, a (r, in) and then b transposed (r, out)."""

    block: torch.Tensor
    shapes: Shapes

    @property
    def rank(self) -> int:
        return max(rank for _, rank, _, _ in self.shapes)

    @property
    def num_bytes(self) -> int:
        return self.block.nbytes

    def to(self, device: torch.device) -> "PackedAdapter":
        """The same with its block on `device`; from pinned memory the copy is only begun."""
        return PackedAdapter(self.block.to(device, non_blocking=True), self.shapes)

    def pieces(self) -> tuple[torch.Tensor, ...]:
        """a and b of each module in turn, flat: parts of the block."""
        sizes = [rank * size for _, rank, *both in self.shapes for size in both]
        return torch.split(self.block, sizes)


def pack(weights: AdapterWeights, dtype: torch.dtype, *, pinned: bool) -> PackedAdapter:
    """Any thread may call it."""
    shapes = tuple(
        (module, pair.a.shape[0], pair.a.shape[1], pair.b.shape[0])
        for module, pair in weights.pairs.items()
    )
    size = sum(rank * (inner + outer) for _, rank, inner, outer in shapes)
    packed = PackedAdapter(torch.empty(size, dtype=dtype, pin_memory=pinned), shapes)
    pieces = iter(packed.pieces())
    for pair in weights.pairs.values():
        next(pieces).view_as(pair.a).copy_(pair.a)
        next(pieces).view_as(pair.b.t()).copy_(pair.b.t())
    return packed
