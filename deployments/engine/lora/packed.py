"""Pack an adapter into one block of host memory, in the dtype that the device computes with.

Loading it is then one copy to the device and a few launches there, instead of two small copies for
each adapted layer (288 for the query and value projections of flan-t5-xl, docs/adapters.md). For a
GPU the block is pinned, so the copy needs no staging buffer and blocks no thread.
"""

from dataclasses import dataclass

import torch

from deployments.engine.lora.peft_reader import AdapterWeights

Shapes = tuple[tuple[str, int, int, int], ...]
"""(module path, r, in, out) of each adapted layer, in the order of the block."""


@dataclass(frozen=True, slots=True)
class PackedLora:
    """Hold a block (n,): for each module of `shapes` a (r, in), then b transposed (r, out)."""

    block: torch.Tensor
    shapes: Shapes

    @property
    def rank(self) -> int:
        return max(rank for _, rank, _, _ in self.shapes)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(path for path, *_ in self.shapes)

    @property
    def num_bytes(self) -> int:
        return self.block.nbytes

    def to(self, device: torch.device) -> "PackedLora":
        """Return a copy on `device`. From pinned memory the copy may still be running."""
        return PackedLora(self.block.to(device, non_blocking=True), self.shapes)

    def pieces(self) -> tuple[torch.Tensor, ...]:
        """Return a and b of each module in turn, flat: views of the block."""
        sizes = [rank * size for _, rank, *both in self.shapes for size in both]
        return torch.split(self.block, sizes)


def pack(weights: AdapterWeights, dtype: torch.dtype, *, pinned: bool) -> PackedLora:
    """Pack an adapter's weights. Any thread may call it."""
    shapes = tuple(
        (path, pair.a.shape[0], pair.a.shape[1], pair.b.shape[0])
        for path, pair in weights.pairs.items()
    )
    size = sum(rank * (inner + outer) for _, rank, inner, outer in shapes)
    packed = PackedLora(torch.empty(size, dtype=dtype, pin_memory=pinned), shapes)
    pieces = iter(packed.pieces())
    for pair in weights.pairs.values():
        next(pieces).view_as(pair.a).copy_(pair.a)
        next(pieces).view_as(pair.b.t()).copy_(pair.b.t())
    return packed
