"""Multiply a mixed batch by its adapters with Triton kernels. Imported only where they run."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch

from deployments.engine.kernels.ops import Expansion, RowGroups, rms_norm
from deployments.engine.kernels.triton_grouped_lora import (
    lora_expand_add,
    lora_expand_gated,
    lora_shrink,
)
from deployments.engine.kernels.triton_groups import group_rows
from deployments.engine.kernels.triton_lora import MAX_NORM_COLUMNS, norm_shrink
from deployments.engine.lora.layers import LoraStack

# Up to so many ranks of a layer's modules together, each row multiplies by itself, in the kernel of
# its norm, which reads A for every row: more ranks where rows are few (docs/engine.md).
_FEW_RANKS, _MORE_RANKS = 16, 64
_FEW_ROWS = 64


class TritonLoraBatch:
    """Implement LoraBatch (layers.py): each row finds its adapter through a tensor of slots.

    Args:
        stacks: for each layer, the first output column and the stack of each adapted module.
        slots: (B,)
        is_invariant: a row's sums do not depend on the number of rows.
    """

    def __init__(
        self,
        stacks: Mapping[str, Sequence[tuple[int, LoraStack]]],
        slots: torch.Tensor,
        *,
        is_invariant: bool,
    ) -> None:
        self._stacks = stacks
        self._slots = slots
        takes_more = len(slots) <= _FEW_ROWS and not is_invariant
        self._few_ranks = _MORE_RANKS if takes_more else _FEW_RANKS

    def adapts(self, layer: str) -> bool:
        return bool(self._stacks.get(layer))

    def rescales(self, layer: str) -> bool:
        return any(stack.gains is not None for _, stack in self._stacks.get(layer, ()))

    def few(self, layer: str) -> tuple[Sequence[torch.Tensor], torch.Tensor] | None:
        a = [stack.a for _, stack in self._stacks.get(layer, ())]
        ranks = sum(each.shape[1] for each in a)
        return (a, self._slots) if 0 < ranks <= self._few_ranks else None

    def expanded(self, layer: str, shrunk: torch.Tensor) -> Expansion:
        return Expansion(shrunk, self._columns(layer), self._slots)

    def gated(self, expansion: Expansion, y: torch.Tensor, activation: str) -> torch.Tensor:
        return lora_expand_gated(y, self._grouped(expansion), activation)

    def norm(
        self, layer: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, Expansion | None]:
        few = self.few(layer)
        if few is not None and x.shape[1] <= MAX_NORM_COLUMNS:
            normed, shrunk = norm_shrink(x, weight, eps, *few)
            return normed, self.expanded(layer, shrunk)
        normed = rms_norm(x, weight, eps)
        return normed, self.shrink(layer, normed)

    def shrink(self, layer: str, x: torch.Tensor) -> Expansion | None:
        stacks = self._stacks.get(layer)
        if not stacks:
            return None
        shrunk = lora_shrink(x, [stack.a for _, stack in stacks], self._groups)
        columns = self._columns(layer)
        return Expansion(shrunk, columns, self._slots, self._groups, is_beside=True)

    def add(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: Expansion | None = None
    ) -> None:
        expansion = shrunk or self.shrink(layer, x)
        if expansion is not None:
            self._expand(layer, expansion, y)

    def embed(self, layer: str, tokens: torch.Tensor, y: torch.Tensor) -> None:
        stacks = self._stacks.get(layer)
        if stacks:
            shrunk = torch.stack([stack.a[self._slots, :, tokens] for _, stack in stacks], 1)
            self._expand(layer, Expansion(shrunk.float(), self._columns(layer), self._slots), y)

    def expansion(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: Expansion | None
    ) -> Expansion | None:
        return shrunk or self.shrink(layer, x)

    def _columns(self, layer: str) -> list[tuple[int, torch.Tensor]]:
        return [(start, stack.b) for start, stack in self._stacks[layer]]

    def _expand(self, layer: str, expansion: Expansion, y: torch.Tensor) -> None:
        gains = [stack.gains for _, stack in self._stacks[layer]]
        lora_expand_add(y, self._grouped(expansion), gains)

    def _grouped(self, expansion: Expansion) -> Expansion:
        return dataclasses.replace(expansion, groups=self._groups)

    @functools.cached_property
    def _groups(self) -> RowGroups:
        """Return the rows by adapter, once a layer asks for them."""
        every = [[stack.a for _, stack in stacks] for stacks in self._stacks.values() if stacks]
        return group_rows(
            self._slots,
            len(every[0][0]),
            ranks=max(sum(a.shape[1] for a in modules) for modules in every),
            inputs=max(modules[0].shape[2] for modules in every),
        )
