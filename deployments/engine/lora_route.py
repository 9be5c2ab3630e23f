"""The multi-LoRA product of one forward pass: which adapter each token has, and where it lies.

A route is made by the bank (lora_bank.py) for one forward pass, or for one captured graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from deployments.engine.kernels import lora_expand_add, lora_shrink


@dataclass(frozen=True, slots=True)
class Part:
    """One linear layer inside a site: output columns [start, stop)."""

    module: str  # its path in the base model
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Site:
    """A fused linear layer that adapters may change."""

    name: str
    in_features: int
    parts: tuple[Part, ...]


@dataclass(slots=True)
class Stack:
    """One part's weights of every slot. a: (N, R, in); b: (N, R, out)."""

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, slots=True)
class SiteLanes:
    """A site's weights of the slots in use; W is the sum of their ranks, P the parts in use.

    a: (in, P * W); b: for each part its output columns and (W, columns).
    """

    a: torch.Tensor
    b: tuple[tuple[int, int, torch.Tensor], ...]


@dataclass(frozen=True, slots=True)
class Lanes:
    slots: tuple[int, ...]
    lane_of_column: torch.Tensor  # (W,) position in `slots`
    sites: Mapping[str, SiteLanes]


class Route(Protocol):
    """Which adapter each token of one forward pass has."""

    def add(self, site: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """y (T, out) += each token's own LoRA of x (T, in), in place."""


class LoraRoute:
    """A route over lanes.

    Args:
        mask: (T, 1, W) ones where a token's lane is; None: every token has the only lane.
    """

    def __init__(self, lanes: Lanes, mask: torch.Tensor | None) -> None:
        self._sites = lanes.sites
        self._width = lanes.lane_of_column.numel()
        self._mask = mask

    def add(self, site: str, x: torch.Tensor, y: torch.Tensor) -> None:
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


class KernelRoute:
    """Which adapter each row of a captured step has: a tensor of slots instead of lanes.

    Args:
        slots: (B,)
    """

    def __init__(
        self, parts: Mapping[str, Sequence[tuple[int, Stack]]], slots: torch.Tensor
    ) -> None:
        self._parts = parts
        self._slots = slots

    def add(self, site: str, x: torch.Tensor, y: torch.Tensor) -> None:
        """y (B, out) += each row's own LoRA of x (B, in), in place."""
        parts = self._parts.get(site)
        if parts:
            shrunk = lora_shrink(x, [stack.a for _, stack in parts], self._slots)
            stacks = [(start, stack.b) for start, stack in parts]
            lora_expand_add(y, shrunk, stacks, self._slots)
