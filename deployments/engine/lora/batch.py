"""The multi-LoRA product of one forward pass: which adapter each token has, and where it lies.

A route is made by the bank (lora_bank.py) for one forward pass, or for one captured graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from deployments.engine.kernels.lora import (
    Expansion,
    lora_expand_add,
    lora_shrink,
    norm_shrink,
    rms_norm,
)


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One linear layer inside a site: output columns [start, stop)."""

    module: str  # its path in the base model
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """A fused linear layer that adapters may change."""

    name: str
    in_features: int
    parts: tuple[LoraModule, ...]


@dataclass(slots=True)
class LoraStack:
    """One part's weights of every slot. a: (N, R, in); b: (N, R, out)."""

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class LayerSegments:
    """A site's weights of the slots in use; W is the sum of their ranks, P the parts in use.

    a: (in, P * W); b: for each part its output columns and (W, columns).
    """

    a: torch.Tensor
    b: tuple[tuple[int, int, torch.Tensor], ...]


@dataclass(frozen=True, slots=True)
class LoraSegments:
    slots: tuple[int, ...]
    lane_of_column: torch.Tensor  # (W,) position in `slots`
    sites: Mapping[str, LayerSegments]


class LoraBatch(Protocol):
    """Which adapter each token of one forward pass has."""

    def norm(
        self, site: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The RMS norm of x (T, in), and what `add` may reuse of the work."""

    def add(
        self, site: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None = None
    ) -> None:
        """y (T, out) += each token's own LoRA of x (T, in), in place; `shrunk` is from `norm`."""

    def expansion(
        self, site: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None
    ) -> Expansion | None:
        """As `add`, but what the kernel that reads y next can add itself may be left to it."""


class TorchLoraBatch:
    """A route over lanes.

    Args:
        mask: (T, 1, W) ones where a token's lane is; None: every token has the only lane.
    """

    def __init__(self, lanes: LoraSegments, mask: torch.Tensor | None) -> None:
        self._sites = lanes.sites
        self._width = lanes.lane_of_column.numel()
        self._mask = mask

    def norm(
        self, site: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return rms_norm(x, weight, eps), None

    def add(
        self, site: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None = None
    ) -> None:
        lanes = self._sites.get(site)
        if lanes is None:
            return
        width = self._width
        shrunk = torch.mm(x.to(lanes.a.dtype), lanes.a)
        if self._mask is not None:
            shrunk.view(len(x), -1, width).mul_(self._mask)
        for i, (start, stop, b) in enumerate(lanes.b):
            columns, own = y[:, start:stop], shrunk[:, i * width : (i + 1) * width]
            if y.dtype == b.dtype:
                columns.addmm_(own, b)
            else:
                columns.add_(torch.mm(own, b))

    def expansion(
        self, site: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None
    ) -> None:
        self.add(site, x, y, shrunk)


class TritonLoraBatch:
    """Which adapter each row of a captured step has: a tensor of slots instead of lanes.

    Args:
        slots: (B,)
    """

    def __init__(
        self, parts: Mapping[str, Sequence[tuple[int, LoraStack]]], slots: torch.Tensor
    ) -> None:
        self._parts = parts
        self._slots = slots

    def norm(
        self, site: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        parts = self._parts.get(site)
        if not parts:
            return rms_norm(x, weight, eps), None
        return norm_shrink(x, weight, eps, [stack.a for _, stack in parts], self._slots)

    def add(
        self, site: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None = None
    ) -> None:
        expansion = self.expansion(site, x, y, shrunk)
        if expansion is not None:
            lora_expand_add(y, expansion)

    def expansion(
        self, site: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None
    ) -> Expansion | None:
        parts = self._parts.get(site)
        if not parts:
            return None
        if shrunk is None:
            shrunk = lora_shrink(x, [stack.a for _, stack in parts], self._slots)
        return Expansion(shrunk, [(start, stack.b) for start, stack in parts], self._slots)
