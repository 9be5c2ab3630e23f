"""Pack adapters, and hold the stacked weights of all slots: the tensors behind the pool (pool.py).

Each module that any adapter targets has

    a: (num_slots, R, in)     b: (num_slots, R, out)     R: the largest rank, a multiple of 8

with PEFT's scale inside b and zeros beyond an adapter's rank. Slot 0 is the base model: all zeros.
Where an adapter has magnitudes (DoRA), its b holds their gains too (gains.py).
"""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from deployments.engine.attention.memory_plan import room_on
from deployments.engine.errors import LoraPoolError
from deployments.engine.host_memory import huge_zeros
from deployments.engine.lora.gains import gains_of
from deployments.engine.lora.layers import LoraLayer, LoraStack
from deployments.engine.lora.peft_reader import AdapterWeights
from deployments.engine.lora.segments import LoraSegments, build_segments

RANK_BUCKET = 8
Shapes = tuple[tuple[str, int, int, int, int], ...]
"""(module path, r, in, out, magnitudes: out or 0) of each adapted layer, in the block's order."""


@dataclass(frozen=True, slots=True)
class PackedLora:
    """Hold a block (n,): for each module of `shapes` a (r, in), b transposed (r, out), magnitudes.

    It is in the dtype that the device computes with. Loading it is one copy to the device and a few
    launches there, instead of two small copies for each adapted layer (288 for the query and value
    projections of flan-t5-xl, docs/adapters.md). For a GPU the block is pinned, so the copy needs
    no staging buffer and blocks no thread.
    """

    block: torch.Tensor
    shapes: Shapes

    @property
    def rank(self) -> int:
        return max(rank for _, rank, *_ in self.shapes)

    @property
    def rescaled(self) -> tuple[str, ...]:
        """Return the modules with magnitudes."""
        return tuple(path for path, *_, magnitudes in self.shapes if magnitudes)

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(path for path, *_ in self.shapes)

    @property
    def num_bytes(self) -> int:
        return self.block.nbytes

    def to(self, device: torch.device) -> "PackedLora":
        """Return a copy on `device`. From pinned memory the copy may still be running."""
        return PackedLora(self.block.to(device, non_blocking=True), self.shapes)

    def pieces(self) -> tuple[torch.Tensor, ...]:
        """Return a, b and, where there are some, magnitudes of each module in turn, flat: views of
        the block."""
        sizes = [
            size
            for _, rank, inner, outer, magnitudes in self.shapes
            for size in (rank * inner, rank * outer, magnitudes)
            if size
        ]
        return torch.split(self.block, sizes)


@dataclass(frozen=True, slots=True)
class _SlotViews:
    """Hold a slot's rows of the stacks, as flat views, for adapters of these shapes."""

    shapes: Shapes
    layout: int
    views: list[torch.Tensor]


def features_of(layers: Sequence[LoraLayer]) -> dict[str, tuple[int, int]]:
    """Return the inputs and outputs of each module of the layers, in order."""
    return {
        module.path: (layer.in_features, module.stop - module.start)
        for layer in layers
        for module in layer.modules
    }


def unsupported_modules(
    features: Mapping[str, tuple[int, int]],
    weights: PackedLora,
    rescalable: Collection[str] = (),
) -> list[str]:
    """Return why an adapter does not fit modules of these inputs and outputs; empty if it does.

    Args:
        rescalable: modules that take magnitudes (DoRA).
    """
    problems = []
    for path, _, *found, magnitudes in weights.shapes:
        if magnitudes and path in features and path not in rescalable:
            problems.append(f"{path} has magnitudes (DoRA), which its weights do not take")
        if path not in features:
            problems.append(f"{path} is not a layer that the fast decoder adapts")
        elif features[path] != tuple(found):
            problems.append(f"{path} maps {tuple(found)}; the base model has {features[path]}")
    return problems


class LoraStacks:
    """Hold each module's stack, and the rank and the modules of the adapter in each slot."""

    def __init__(
        self,
        layers: Sequence[LoraLayer],
        num_slots: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        room: Callable[[], float] | None = None,
    ) -> None:
        """`room` returns the bytes that are free on the device; None: as the device says."""
        self._room = room or functools.partial(room_on, device)
        self.layout = 0  # changes when stacks are added or moved: that voids captured graphs
        self._layers = tuple(layers)
        self._features = features_of(layers)
        self._places = {m.path: (layer.base, m) for layer in layers for m in layer.modules}
        self._dtype, self._device = dtype, device
        self._num_slots = num_slots
        self._rank = RANK_BUCKET
        self._stacks: dict[str, LoraStack] = {}
        self.ranks = np.zeros(num_slots, np.int64)  # of the adapter in each slot
        self._modules: list[frozenset[str]] = [frozenset()] * num_slots
        self._views: dict[int, _SlotViews] = {}

    def unsupported_modules(self, weights: PackedLora) -> list[str]:
        """Return why this adapter does not fit the model; empty if it does."""
        rescalable = {path for path, (base, _) in self._places.items() if base is not None}
        return unsupported_modules(self._features, weights, rescalable)

    def adapts(self, path: str) -> bool:
        """Return whether any adapter that was loaded so far changes this module."""
        return path in self._stacks

    def write(self, slot: int, weights: PackedLora) -> None:
        """Replace what the slot holds. No row may use it."""
        self._grow(weights.rank, weights.modules, weights.rescaled)
        views = self._views_of(slot, weights.shapes)
        self.ranks[slot] = weights.rank
        self._modules[slot] = frozenset(weights.modules)
        torch._foreach_copy_(views, list(weights.to(self._device).pieces()))
        for path, rank, *_, magnitudes in weights.shapes:
            if magnitudes:
                self._rescale(path, slot, rank)

    def _rescale(self, path: str, slot: int, rank: int) -> None:
        """Turn a module's magnitudes, copied where its gains are to be, into gains."""
        stack, (base, module) = self._stacks[path], self._places[path]
        assert base is not None, f"{path} cannot be rescaled"
        assert stack.gains is not None, f"{path} has no room for gains"
        a, b, gains = stack.a[slot, :rank], stack.b[slot, :rank], stack.gains[slot]
        gains.copy_(gains_of(gains, a, b, base, slice(module.start, module.stop)))
        b.mul_(gains)

    def segments(self, active: tuple[int, ...]) -> LoraSegments:
        """Copy the adapters in these slots, ascending and without slot 0, side by side."""
        return build_segments(
            active,
            self._layers,
            self._stacks,
            stack_rank=self._rank,
            ranks=self.ranks.tolist(),
            modules=self._modules,
            device=self._device,
        )

    @property
    def rank(self) -> int:
        """Return R."""
        return self._rank

    @property
    def by_module(self) -> Mapping[str, LoraStack]:
        """Return the stack of each adapted module. Valid while `layout` stays."""
        return self._stacks

    def by_layer(self) -> dict[str, list[tuple[int, LoraStack]]]:
        """Return, for each layer, the first output column and the stack of each adapted module.

        Empty if no adapter was ever written. Valid while `layout` stays.
        """
        if not self._stacks:
            return {}
        return {
            layer.name: [
                (module.start, self._stacks[module.path])
                for module in layer.modules
                if module.path in self._stacks
            ]
            for layer in self._layers
        }

    def _views_of(self, slot: int, shapes: Shapes) -> list[torch.Tensor]:
        """Return where an adapter's pieces go, after zeroing what the slot held before.

        The views are kept for the next adapter: most have the same shapes, and hundreds of small
        views take longer to make than to fill.
        """
        kept = self._views.get(slot)
        if kept is not None and kept.shapes == shapes and kept.layout == self.layout:
            return kept.views
        rank = self.ranks[slot]
        before = [self._stacks[module] for module in self._modules[slot]]
        if before:
            torch._foreach_zero_([half[slot, :rank] for s in before for half in (s.a, s.b)])
        for stack in before:
            if stack.gains is not None:
                stack.gains[slot].fill_(1.0)
        views = []
        for module, rank, _, _, magnitudes in shapes:
            stack = self._stacks[module]
            views += [stack.a[slot, :rank].view(-1), stack.b[slot, :rank].view(-1)]
            if magnitudes and stack.gains is not None:
                views.append(stack.gains[slot])
        self._views[slot] = _SlotViews(shapes, self.layout, views)
        return views

    def _grow(self, rank: int, modules: Sequence[str], rescaled: Iterable[str]) -> None:
        """Make room for this rank and for modules that no adapter had, or rescaled, so far.

        Raises:
            LoraPoolError: the device has no room; nothing has changed then.
        """
        wanted = -(-rank // RANK_BUCKET) * RANK_BUCKET
        self._check_room(max(wanted, self._rank), modules)
        if wanted > self._rank:
            for module, old in self._stacks.items():
                new = self._new_stack(module, wanted)
                new.a[:, : self._rank] = old.a
                new.b[:, : self._rank] = old.b
                new.gains = old.gains
                self._stacks[module] = new
            self._rank = wanted
            self.layout += 1
        for module in modules:
            if module not in self._stacks:
                self._stacks[module] = self._new_stack(module, self._rank)
                self.layout += 1
        for module in rescaled:
            if self._stacks[module].gains is None:
                shape = (self._num_slots, self._features[module][1])
                self._stacks[module].gains = torch.ones(shape, device=self._device)
                self.layout += 1

    def _check_room(self, rank: int, modules: Sequence[str]) -> None:
        """Refuse stacks of this rank that would take more than is free on a GPU."""
        grown = {path: self._num_bytes(path, rank) for path in {*self._stacks, *modules}}
        held = sum(stack.a.nbytes + stack.b.nbytes for stack in self._stacks.values())
        more = sum(grown.values()) - held
        # A stack is copied before the old one goes.
        needed = more + (max(grown.values()) if rank > self._rank else 0)
        if more <= 0 or needed <= (room := self._room()):
            return
        raise LoraPoolError(
            f"rank {rank} on {len(grown)} layers takes {more / 2**20:.0f} MiB more of the device, "
            f"for {self._num_slots} slots, and {room / 2**20:.0f} MiB are free: lower "
            "engine.max_adapters, engine.max_rows or engine.kv_memory_mib, so that more stays free "
            "at the start"
        )

    def _num_bytes(self, module: str, rank: int) -> int:
        return self._num_slots * rank * sum(self._features[module]) * self._dtype.itemsize

    def _new_stack(self, module: str, rank: int) -> LoraStack:
        shapes = [(self._num_slots, rank, features) for features in self._features[module]]
        a, b = (torch.zeros(shape, dtype=self._dtype, device=self._device) for shape in shapes)
        return LoraStack(a, b)


def pack(
    weights: AdapterWeights,
    dtype: torch.dtype,
    *,
    pinned: bool = False,
    in_huge_pages: bool = False,
) -> PackedLora:
    """Pack an adapter's weights. Any thread may call it."""
    shapes = tuple(
        (path, *pair.a.shape, len(pair.b), 0 if pair.magnitude is None else len(pair.b))
        for path, pair in weights.pairs.items()
    )
    size = sum(rank * (inner + outer) + magnitudes for _, rank, inner, outer, magnitudes in shapes)
    if in_huge_pages:
        block = huge_zeros([size], dtype)
    else:
        block = torch.empty(size, dtype=dtype, pin_memory=pinned)
    packed = PackedLora(block, shapes)
    pieces = iter(packed.pieces())
    for pair in weights.pairs.values():
        next(pieces).view_as(pair.a).copy_(pair.a)
        next(pieces).view_as(pair.b.t()).copy_(pair.b.t())
        if pair.magnitude is not None:
            next(pieces).copy_(pair.magnitude)
    return packed
