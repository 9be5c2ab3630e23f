"""Multiply a batch by its adapters, each token by its own: the contract, and torch's version.

LoraPool (pool.py) makes a LoraBatch for one forward pass, or for one captured graph
(triton_batch.py).
"""

from typing import Protocol

import torch

from deployments.engine.kernels.elementwise import rms_norm
from deployments.engine.kernels.types import Expansion
from deployments.engine.lora.segments import LoraSegments


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


class TorchLoraBatch:
    """Multiply through segments (segments.py).

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
