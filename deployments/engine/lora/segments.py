"""Multiply a batch by adapters that torch has copied side by side, one segment for each.

A *segment* is one adapter's columns in these copies, as wide as its own rank. x @ A of all
segments, a mask that leaves each token its own segment, then @ B: two matrix products, whatever the
mixture. A rank-64 adapter does not widen a rank-4 one.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from deployments.engine.host_memory import numbers_on
from deployments.engine.kernels.ops import Expansion
from deployments.engine.lora.layers import AddedLater, LoraLayer, LoraStack


@dataclass(frozen=True, slots=True)
class LayerSegments:
    """Hold one layer's segments; W is the sum of their ranks, P the number of modules in use.

    a: (in, P * W); b: for each module its first and last output column and (W, columns).
    gains: the same two columns and (S + 1, columns), for the S slots and for no adapter: ones.
    """

    a: torch.Tensor
    b: tuple[tuple[int, int, torch.Tensor], ...]
    gains: tuple[tuple[int, int, torch.Tensor], ...] = ()


@dataclass(frozen=True, slots=True)
class LoraSegments:
    """Hold the segments of every layer for one mixture of slots."""

    slots: tuple[int, ...]
    segment_of_column: torch.Tensor  # (W,) position in `slots`
    layers: Mapping[str, LayerSegments]


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
    rows = numbers_on(device, [slot * stack_rank + r for _, slot, r in columns])
    slots = numbers_on(device, [*active, 0])
    used = frozenset().union(*(modules[slot] for slot in active))
    return LoraSegments(
        slots=active,
        segment_of_column=numbers_on(device, [i for i, _, _ in columns]),
        layers={
            layer.name: built
            for layer in layers
            if (built := _layer_segments(layer, stacks, used, rows, slots)) is not None
        },
    )


def _layer_segments(
    layer: LoraLayer,
    stacks: Mapping[str, LoraStack],
    used: frozenset[str],
    rows: torch.Tensor,
    slots: torch.Tensor,
) -> LayerSegments | None:
    """Copy `rows` (W,) of the stacks, flattened to (N * R, features), and the gains of `slots`;
    None if none is used."""
    a, b, gains = [], [], []
    for module in layer.modules:
        if module.path in used:
            stack = stacks[module.path]
            if stack.gains is not None and bool((stack.gains[slots] != 1).any()):
                gains.append((module.start, module.stop, stack.gains[slots]))
            a.append(stack.a.flatten(0, 1).index_select(0, rows))
            columns = stack.b.flatten(0, 1).index_select(0, rows)
            b.append((module.start, module.stop, columns))
    if not a:
        return None
    return LayerSegments(torch.cat(a).t().contiguous(), tuple(b), tuple(gains))


class TorchLoraBatch(AddedLater):
    """Implement LoraBatch (layers.py) with segments.

    Args:
        mask: (T, 1, W) ones in the columns of a token's segment; None if all tokens share one.
        own: (T,) the position of each token's slot in the segments, -1 for none; None with `mask`.
    """

    def __init__(
        self, segments: LoraSegments, mask: torch.Tensor | None, own: torch.Tensor | None
    ) -> None:
        self._layers = segments.layers
        self._width = segments.segment_of_column.numel()
        self._mask, self._own = mask, own

    def adapts(self, layer: str) -> bool:
        return layer in self._layers

    def rescales(self, layer: str) -> bool:
        segments = self._layers.get(layer)
        return segments is not None and bool(segments.gains)

    def add(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: Expansion | None = None
    ) -> None:
        segments = self._layers.get(layer)
        if segments is not None:
            self._expand(segments, torch.mm(x.to(segments.a.dtype), segments.a), y)

    def embed(self, layer: str, tokens: torch.Tensor, y: torch.Tensor) -> None:
        segments = self._layers.get(layer)
        if segments is not None:
            self._expand(segments, segments.a[tokens], y)

    def _expand(self, segments: LayerSegments, shrunk: torch.Tensor, y: torch.Tensor) -> None:
        """Add the masked `shrunk` (T, P W) times B to y (T, out), after the gains."""
        width = self._width
        for start, stop, gains in segments.gains:
            y[:, start:stop].mul_(gains[0] if self._own is None else gains[self._own])
        if self._mask is not None:
            shrunk.view(len(y), -1, width).mul_(self._mask)
        for i, (start, stop, b) in enumerate(segments.b):
            columns, own = y[:, start:stop], shrunk[:, i * width : (i + 1) * width]
            if y.dtype == b.dtype:
                columns.addmm_(own, b)
            else:
                columns.add_(torch.mm(own, b))

    def expansion(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: Expansion | None
    ) -> None:
        self.add(layer, x, y, shrunk)


class SegmentCache:
    """Keep the segments of the mixtures that were used last, `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
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
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)

    def forget(self, slot: int) -> None:
        """Drop every mixture with this slot, whose weights have changed."""
        for mixture in [m for m in self._kept if slot in m]:
            del self._kept[mixture]
