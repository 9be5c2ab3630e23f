"""Multiply a mixed batch by its adapters with Triton kernels. Imported only where they run."""

from collections.abc import Mapping, Sequence

import torch

from deployments.engine.kernels.ops import Expansion, rms_norm
from deployments.engine.kernels.triton_lora import lora_expand_add, lora_shrink, norm_shrink
from deployments.engine.lora.layers import LoraStack


class TritonLoraBatch:
    """Implement LoraBatch (layers.py): each row finds its adapter through a tensor of slots.

    Args:
        stacks: for each layer, the first output column and the stack of each adapted module.
        slots: (B,)
    """

    def __init__(
        self, stacks: Mapping[str, Sequence[tuple[int, LoraStack]]], slots: torch.Tensor
    ) -> None:
        self._stacks = stacks
        self._slots = slots

    def adapts(self, layer: str) -> bool:
        return bool(self._stacks.get(layer))

    def rescales(self, layer: str) -> bool:
        return any(stack.gains is not None for _, stack in self._stacks.get(layer, ()))

    def shrink(self, layer: str) -> tuple[Sequence[torch.Tensor], torch.Tensor] | None:
        return [stack.a for _, stack in self._stacks[layer]], self._slots

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
            lora_expand_add(y, expansion, self._gains(layer))

    def embed(self, layer: str, tokens: torch.Tensor, y: torch.Tensor) -> None:
        stacks = self._stacks.get(layer)
        if stacks:
            shrunk = torch.stack([stack.a[self._slots, :, tokens] for _, stack in stacks], 1)
            columns = [(start, stack.b) for start, stack in stacks]
            lora_expand_add(y, Expansion(shrunk.float(), columns, self._slots), self._gains(layer))

    def _gains(self, layer: str) -> list[torch.Tensor | None]:
        return [stack.gains for _, stack in self._stacks[layer]]

    def expansion(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: torch.Tensor | None
    ) -> Expansion | None:
        stacks = self._stacks.get(layer)
        if not stacks:
            return None
        if shrunk is None:
            shrunk = lora_shrink(x, [stack.a for _, stack in stacks], self._slots)
        return Expansion(shrunk, [(start, stack.b) for start, stack in stacks], self._slots)
