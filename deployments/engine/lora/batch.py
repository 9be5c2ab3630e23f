"""Multiply a mixed batch by its adapters: each token has its own, or none.

LoraPool (pool.py) makes a LoraBatch for one forward pass, or for one captured graph.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from deployments.engine.kernels.lora import (
    lora_expand_add,
    lora_shrink,
    norm_shrink,
    rms_norm,
)
from deployments.engine.kernels.types import Expansion
from deployments.engine.lora.layers import LoraStack
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


class TritonLoraBatch:
    """Multiply by kernels that find each row's adapter through a tensor of slots.

    Args:
        stacks: for each layer, the first output column and the stack of each adapted module.
        slots: (B,)
    """

    def __init__(
        self, stacks: Mapping[str, Sequence[tuple[int, LoraStack]]], slots: torch.Tensor
    ) -> None:
        self._stacks = stacks
        self._slots = slots

    def norm(
        self, layer: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        stacks = self._stacks.get(layer)
        if not stacks:
            return rms_norm(x, weight, eps), None
        return norm_shrink(x, weight, eps, [stack.a for _, stack in stacks], self._slots)

    def add(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None = None
    ) -> None:
        expansion = self.expansion(layer, x, y, shrunk)
        if expansion is not None:
            lora_expand_add(y, expansion)

    def expansion(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None
    ) -> Expansion | None:
        stacks = self._stacks.get(layer)
        if not stacks:
            return None
        if shrunk is None:
            shrunk = lora_shrink(x, [stack.a for _, stack in stacks], self._slots)
        return Expansion(shrunk, [(start, stack.b) for start, stack in stacks], self._slots)
