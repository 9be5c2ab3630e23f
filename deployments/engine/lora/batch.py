"""Multiply a mixed batch by its adapters: each token has its own, or none.

LoraPool (pool.py) makes a LoraBatch for one forward pass, or for one captured graph
(triton_batch.py). With torch, the adapters of a batch are copied side by side. A *segment* is one
adapter's columns in these copies, as wide as its own rank. x @ A of all segments, a mask that
leaves each token its own segment, then @ B: two matrix products, whatever the mixture. A rank-64
adapter does not widen a rank-4 one.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from deployments.engine.kernels.ops import Expansion, rms_norm

_KEPT_MIXTURES = 8


class LoraBatch(Protocol):
    """Know which adapter each token of one forward pass has. `layer` is a LoraLayer's name."""

    def norm(
        self, layer: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the RMS norm of x (T, in), and x @ A if that came with it, for `add`."""

    def add(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None = None
    ) -> None:
        """Add each token's LoRA of x (T, in) to y (T, out) in place; `shrunk` is from `norm`."""

    def expansion(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None
    ) -> Expansion | None:
        """Do `add`, or return the part that the kernel that reads y next can add itself."""


@dataclass(frozen=True, slots=True)
class LayerSegments:
    """Hold one layer's segments; W is the sum of their ranks, P the number of modules in use.

    a: (in, P * W); b: for each module its first and last output column and (W, columns).
    """

    a: torch.Tensor
    b: tuple[tuple[int, int, torch.Tensor], ...]


@dataclass(frozen=True, slots=True)
class LoraSegments:
    """Hold the segments of every layer for one mixture of slots."""

    slots: tuple[int, ...]
    segment_of_column: torch.Tensor  # (W,) position in `slots`
    layers: Mapping[str, LayerSegments]


class TorchLoraBatch:
    """Multiply through segments.

    Args:
        mask: (T, 1, W) ones in the columns of a token's segment; None if all tokens share one.
    """

    def __init__(self, segments: LoraSegments, mask: torch.Tensor | None) -> None:
        self._layers = segments.layers
        self._width = segments.segment_of_column.numel()
        self._mask = mask

    def norm(
        self, layer: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return rms_norm(x, weight, eps), None

    def add(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None = None
    ) -> None:
        segments = self._layers.get(layer)
        if segments is None:
            return
        width = self._width
        shrunk = torch.mm(x.to(segments.a.dtype), segments.a)
        if self._mask is not None:
            shrunk.view(len(x), -1, width).mul_(self._mask)
        for i, (start, stop, b) in enumerate(segments.b):
            columns, own = y[:, start:stop], shrunk[:, i * width : (i + 1) * width]
            if y.dtype == b.dtype:
                columns.addmm_(own, b)
            else:
                columns.add_(torch.mm(own, b))

    def expansion(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None
    ) -> None:
        self.add(layer, x, y, shrunk)


class SegmentCache:
    """Keep the segments of the mixtures that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], LoraSegments] = OrderedDict()

    def find(self, active: tuple[int, ...]) -> LoraSegments | None:
        """Return segments with the slots `active` and at most as many others, None if not kept."""
        wanted = set(active)
        for kept in reversed(self._kept.values()):
            if wanted <= set(kept.slots) and len(kept.slots) <= 2 * len(active):
                self._kept.move_to_end(kept.slots)
                return kept
        return None

    def add(self, segments: LoraSegments) -> None:
        self._kept[segments.slots] = segments
        if len(self._kept) > _KEPT_MIXTURES:
            self._kept.popitem(last=False)

    def forget(self, slot: int) -> None:
        """Drop every mixture with this slot, whose weights have changed."""
        for mixture in [m for m in self._kept if slot in m]:
            del self._kept[mixture]
