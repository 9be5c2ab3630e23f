"""Copy the adapters of a mixed batch side by side, and keep the copies of recent mixtures.

A *segment* is one adapter's columns in these copies, as wide as its own rank. x @ A of all
segments, a mask that leaves each token its own segment, then @ B: two matrix products, whatever the
mixture. A rank-64 adapter does not widen a rank-4 one.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from deployments.engine.lora.layers import LoraLayer, LoraStack

_KEPT_MIXTURES = 8


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


def build_segments(
    active: tuple[int, ...],
    layers: Sequence[LoraLayer],
    stacks: Mapping[str, LoraStack],
    *,
    stack_rank: int,
    ranks: Sequence[int],
    modules: Sequence[frozenset[str]],
    device: torch.device,
) -> LoraSegments:
    """Copy the adapters in the slots `active` side by side.

    Args:
        stack_rank: R of the stacks.
        ranks, modules: of the adapter in each slot.
    """
    columns = [(i, slot, r) for i, slot in enumerate(active) for r in range(ranks[slot])]
    rows = torch.tensor([slot * stack_rank + r for _, slot, r in columns], device=device)
    used = frozenset().union(*(modules[slot] for slot in active))
    return LoraSegments(
        slots=active,
        segment_of_column=torch.tensor([i for i, _, _ in columns], device=device),
        layers={
            layer.name: built
            for layer in layers
            if (built := _layer_segments(layer, stacks, used, rows)) is not None
        },
    )


def _layer_segments(
    layer: LoraLayer, stacks: Mapping[str, LoraStack], used: frozenset[str], rows: torch.Tensor
) -> LayerSegments | None:
    """Copy `rows` (W,) of the stacks, flattened to (N * R, features); None if none is used."""
    a, b = [], []
    for module in layer.modules:
        if module.path in used:
            stack = stacks[module.path]
            a.append(stack.a.flatten(0, 1).index_select(0, rows))
            columns = stack.b.flatten(0, 1).index_select(0, rows)
            b.append((module.start, module.stop, columns))
    if not a:
        return None
    return LayerSegments(torch.cat(a).t().contiguous(), tuple(b))
