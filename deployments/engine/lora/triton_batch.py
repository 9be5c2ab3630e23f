"""Multiply a mixed batch by its adapters with Triton kernels. Imported only where they run."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from deployments.engine.kernels.ops import Expansion, RowGroups, Shrink, rms_norm
from deployments.engine.kernels.triton_grouped_lora import (
    lora_expand_add,
    lora_expand_gated,
    lora_shrink,
)
from deployments.engine.kernels.triton_groups import group_rows
from deployments.engine.kernels.triton_lora import (
    MAX_NORM_COLUMNS,
    expand_norm,
    norm_shrink,
)
from deployments.engine.lora.layers import LoraStack

# Up to so many ranks of a layer's modules together, and more where rows are few, the product that
# reads x multiplies by A as well, or the kernel of its norm does, which reads A for every row
# (docs/engine.md).
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
        self._owed: tuple[torch.Tensor, Expansion] | None = None
        # First, since kernels read them before those just before have ended.
        self._groups = self._grouped_rows(is_invariant)

    def adapts(self, layer: str) -> bool:
        return bool(self._stacks.get(layer))

    def rescales(self, layer: str) -> bool:
        return any(stack.gains is not None for _, stack in self._stacks.get(layer, ()))

    def few(self, layer: str) -> Shrink | None:
        a = [stack.a for _, stack in self._stacks.get(layer, ())]
        ranks = sum(each.shape[1] for each in a)
        return Shrink(a, self._slots, self._groups.active) if 0 < ranks <= self._few_ranks else None

    def expanded(self, layer: str, shrunk: torch.Tensor) -> Expansion:
        return Expansion(shrunk, self._columns(layer), self._slots)

    def gated(self, expansion: Expansion, y: torch.Tensor, activation: str) -> torch.Tensor:
        return lora_expand_gated(y, self._grouped(expansion), activation)

    def owe(self, x: torch.Tensor, expansion: Expansion) -> None:
        assert self._owed is None, "something is owed to another tensor"
        self._owed = x, expansion

    def owes(self, x: torch.Tensor) -> bool:
        return self._owed is not None and self._owed[0] is x

    def settle(self, x: torch.Tensor) -> torch.Tensor:
        if (owed := self._paid(x)) is not None:
            lora_expand_add(x, self._grouped(owed))
        return x

    def _paid(self, x: torch.Tensor) -> Expansion | None:
        """Return what is owed to x, if anything is, and forget it."""
        if self._owed is None:
            return None
        (owner, owed), self._owed = self._owed, None
        assert owner is x, "what is owed to another tensor was not added"
        return owed

    def normed(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        owed = self._paid(x)
        return rms_norm(x, weight, eps) if owed is None else expand_norm(x, owed, weight, eps)

    def norm(
        self, layer: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, Expansion | None]:
        few = self.few(layer)
        if few is not None and x.shape[1] <= MAX_NORM_COLUMNS and not self.owes(x):
            normed, shrunk = norm_shrink(x, weight, eps, few.stacks, few.slots)
            return normed, self.expanded(layer, shrunk)
        normed = self.normed(x, weight, eps)
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

    def _grouped_rows(self, is_invariant: bool) -> RowGroups:
        every = [[stack.a for _, stack in stacks] for stacks in self._stacks.values() if stacks]
        return group_rows(
            self._slots,
            len(every[0][0]),
            ranks=max(sum(a.shape[1] for a in modules) for modules in every),
            inputs=max(modules[0].shape[2] for modules in every),
            is_invariant=is_invariant,
        )
