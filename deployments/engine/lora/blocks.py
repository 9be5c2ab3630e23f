"""Keep adapters as they were packed, for a step that reads each row's own by address."""

from collections.abc import Mapping, Sequence

import numpy as np

from deployments.engine.lora.layers import LoraLayer
from deployments.engine.lora.stacks import PackedLora, features_of, unsupported_modules

A, B, RANK = range(3)
FIELDS = 3


class LoraBlocks:
    """Hold the packed adapter of each slot, without a copy, and a table of where its halves lie.

    table: int64 (num_slots, modules, FIELDS): addresses of A (r, in) and B (r, out), and r; zeros
    where the slot's adapter leaves the module alone. Modules are in the order of `layers`.
    adapted: int64 (modules,), 1 where the adapter of some slot changes the module.
    """

    layout = 0  # the table stays where it is

    def __init__(self, layers: Sequence[LoraLayer], num_slots: int) -> None:
        self._features: Mapping[str, tuple[int, int]] = features_of(layers)
        self._numbers = {path: number for number, path in enumerate(self._features)}
        self._held: dict[int, PackedLora] = {}
        self.table = np.zeros((num_slots, len(self._numbers), FIELDS), np.int64)
        self.adapted = np.zeros(len(self._numbers), np.int64)

    @property
    def rank(self) -> int:
        """Return the largest rank in any slot, at least 1."""
        return max(1, int(self.table[..., RANK].max(initial=0)))

    def unsupported_modules(self, weights: PackedLora) -> list[str]:
        """Return why this adapter does not fit the model; empty if it does."""
        return unsupported_modules(self._features, weights)

    def adapts(self, path: str) -> bool:
        """Return whether any adapter in a slot changes this module."""
        return path in self._numbers and bool(self.adapted[self._numbers[path]])

    def write(self, slot: int, weights: PackedLora) -> None:
        """Replace what the slot holds. No row may use it."""
        self._held[slot] = weights
        self.table[slot] = 0
        pieces = iter(weights.pieces())
        for path, rank, *_ in weights.shapes:
            a, b = next(pieces), next(pieces)
            self.table[slot, self._numbers[path]] = a.data_ptr(), b.data_ptr(), rank
        self.adapted[:] = self.table[..., RANK].any(0)
