"""All resident adapters in stacked tensors, and the multi-LoRA product of a mixed batch.

A *site* is one fused linear layer of a decoder (say q, k and v of one layer); its *parts* are the
linear layers that were fused. Each part that any adapter targets has

    a: (num_slots, R, in)     b: (num_slots, R, out)     R: the largest rank, up to a bucket

with the scale inside b and zeros beyond an adapter's rank. Slot 0 is the base model: all zeros.
Each row of a batch carries a slot, so one product serves rows of many adapters.

For a step, the slots in use are copied side by side into *lanes*, each as wide as its own rank:
x @ A of all lanes, a mask that leaves each row its own lane, then @ B: two matrix products,
whatever the mixture. The copies are kept while the mixture stays.

Loading, replacing and evicting happen between two steps. A row keeps the slot that it began with:
a replaced or evicted adapter's slot is reused only when no row uses it any more.

An adapter in one block of main memory, in the numbers that the bank's device computes with.

Loading it is one copy to the device and a few launches there, instead of two small copies for each
adapted layer (288 for the query and value projections of flan-t5-xl, docs/adapters.md). For a GPU
the block is pinned: the copy needs no staging, and nobody waits for it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from deployments.engine.lora.batch import (
    LayerSegments,
    LoraLayer,
    LoraSegments,
    LoraStack,
    TorchLoraBatch,
    TritonLoraBatch,
)
from deployments.engine.lora.peft_reader import AdapterWeights
from deployments.engine.request import EngineError

Shapes = tuple[tuple[str, int, int, int], ...]
"""(module path, r, in, out) of each adapted layer, in the order of the block."""


@dataclass(frozen=True, slots=True)
class PackedLora:
    """`block` (n,) holds, for each module of `shapes`, a (r, in) and then b transposed (r, out)."""

    block: torch.Tensor
    shapes: Shapes

    @property
    def rank(self) -> int:
        return max(rank for _, rank, _, _ in self.shapes)

    @property
    def num_bytes(self) -> int:
        return self.block.nbytes

    def to(self, device: torch.device) -> "PackedLora":
        """The same with its block on `device`; from pinned memory the copy is only begun."""
        return PackedLora(self.block.to(device, non_blocking=True), self.shapes)

    def pieces(self) -> tuple[torch.Tensor, ...]:
        """a and b of each module in turn, flat: parts of the block."""
        sizes = [rank * size for _, rank, *both in self.shapes for size in both]
        return torch.split(self.block, sizes)


def pack(weights: AdapterWeights, dtype: torch.dtype, *, pinned: bool) -> PackedLora:
    """Any thread may call it."""
    shapes = tuple(
        (module, pair.a.shape[0], pair.a.shape[1], pair.b.shape[0])
        for module, pair in weights.pairs.items()
    )
    size = sum(rank * (inner + outer) for _, rank, inner, outer in shapes)
    packed = PackedLora(torch.empty(size, dtype=dtype, pin_memory=pinned), shapes)
    pieces = iter(packed.pieces())
    for pair in weights.pairs.values():
        next(pieces).view_as(pair.a).copy_(pair.a)
        next(pieces).view_as(pair.b.t()).copy_(pair.b.t())
    return packed


BASE_SLOT = 0
_RANK_BUCKET = 8
_KEPT_LANES = 8  # mixtures whose copies are kept


class BankRefused(EngineError):
    """The bank cannot hold, or cannot let go of, this adapter now."""

    code = "adapter_bank_refused"


@dataclass(frozen=True, slots=True)
class _Places:
    """A slot's part of the stacks, in flat views, for adapters of these shapes."""

    shapes: Shapes
    layout: int
    views: list[torch.Tensor]


class LoraPool:
    """The stacks, the slots and who uses them. One thread at a time: the engine's, or the loader's
    before the engine starts."""

    def __init__(
        self,
        sites: Sequence[LoraLayer],
        num_slots: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        if num_slots < 2:
            raise ValueError(f"num_slots is {num_slots}: at least 2, the base and one adapter")
        self._sites = tuple(sites)
        self._parts = {p.module: (s.in_features, p.stop - p.start) for s in sites for p in s.parts}
        self._dtype, self._device = dtype, device
        self._rank = _RANK_BUCKET
        self._stacks: dict[str, LoraStack] = {}
        self._layout = 0
        self._num_slots = num_slots
        self._slot_of: dict[str, int] = {}
        self._ranks = [0] * num_slots
        self._modules: list[frozenset[str]] = [frozenset()] * num_slots
        self._num_users = [0] * num_slots
        self._places: dict[int, _Places] = {}
        self._pinned: set[str] = set()
        self._lanes: OrderedDict[tuple[int, ...], LoraSegments] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._slot_of)

    @property
    def num_bytes(self) -> int:
        return sum(s.a.nbytes + s.b.nbytes for s in self._stacks.values())

    @property
    def layout(self) -> int:
        """Changes when stacks are added or moved: what was captured with them is void."""
        return self._layout

    def num_users(self, name: str) -> int:
        """Rows that use the current version of `name`."""
        return self._num_users[self._slot_of[name]]

    def pack(self, weights: AdapterWeights) -> PackedLora:
        """As `place` takes it. Any thread may call it."""
        return pack(weights, self._dtype, pinned=self._device.type == "cuda")

    def unsupported_modules(self, weights: PackedLora) -> list[str]:
        """Why this adapter does not fit the decoder; empty: it does."""
        problems = []
        for module, _, *found in weights.shapes:
            if module not in self._parts:
                problems.append(f"{module} is not a layer that the fast decoder adapts")
            elif self._parts[module] != tuple(found):
                problems.append(
                    f"{module} maps {tuple(found)}; the base model has {self._parts[module]}"
                )
        return problems

    def install(self, name: str, weights: PackedLora) -> int:
        """Make an adapter resident, or replace its version; returns its slot.

        Raises:
            BankRefused: no free slot, or the weights do not fit.
        """
        slot = self.place(name, weights)
        self.assign(name, slot)
        return slot

    def place(self, name: str, weights: PackedLora) -> int:
        """Fill a free slot, which no row can have yet; `assign` puts it into service.

        Raises:
            BankRefused: no free slot, or the weights do not fit.
        """
        problems = self.unsupported_modules(weights)
        if problems:
            raise BankRefused(f"adapter '{name}': {'; '.join(problems)}")
        slot = self._free_slot(name)
        self._grow(weights.rank, [module for module, *_ in weights.shapes])
        places = self._places_of(slot, weights.shapes)
        self._ranks[slot] = weights.rank
        self._modules[slot] = frozenset(module for module, *_ in weights.shapes)
        torch._foreach_copy_(places, list(weights.to(self._device).pieces()))
        for mixture in [m for m in self._lanes if slot in m]:
            del self._lanes[mixture]
        return slot

    def _places_of(self, slot: int, shapes: Shapes) -> list[torch.Tensor]:
        """Where an adapter's pieces go, with zeros beside them. Kept, since adapters are mostly
        alike and hundreds of small views take longer to make than to fill."""
        kept = self._places.get(slot)
        if kept is not None and kept.shapes == shapes and kept.layout == self._layout:
            return kept.views
        rank = self._ranks[slot]
        before = [self._stacks[module] for module in self._modules[slot]]
        if before:
            torch._foreach_zero_([part[slot, :rank] for s in before for part in (s.a, s.b)])
        views = []
        for module, rank, _, _ in shapes:
            stack = self._stacks[module]
            views += [stack.a[slot, :rank].view(-1), stack.b[slot, :rank].view(-1)]
        self._places[slot] = _Places(shapes, self._layout, views)
        return views

    def assign(self, name: str, slot: int) -> None:
        """Rows that begin with `name` from now on have this slot."""
        self._slot_of[name] = slot

    def evict(self, name: str) -> None:
        """Forget an adapter. Rows that use it keep it to their end.

        Raises:
            BankRefused: it is not resident, or it is pinned.
        """
        self._require(name)
        if name in self._pinned:
            raise BankRefused(f"adapter '{name}' is pinned: unpin it before it is evicted")
        del self._slot_of[name]

    def pin(self, name: str) -> None:
        """Keep `name` resident until it is unpinned."""
        self._require(name)
        self._pinned.add(name)

    def unpin(self, name: str) -> None:
        self._pinned.discard(name)

    def acquire(self, name: str | None) -> int:
        """The slot for a row that begins with `name` now; None is the base model.

        Raises:
            BankRefused: `name` is not resident.
        """
        if name is None:
            return BASE_SLOT
        self._require(name)
        slot = self._slot_of[name]
        self._num_users[slot] += 1
        return slot

    def release(self, slot: int) -> None:
        """A row that had acquired `slot` has ended."""
        if slot != BASE_SLOT:
            self._num_users[slot] -= 1
            assert self._num_users[slot] >= 0, f"slot {slot} released more often than acquired"

    def route(
        self, slots: Sequence[int], counts: Sequence[int] | None = None
    ) -> TorchLoraBatch | None:
        """The route of tokens with these slots; None: all are the base model's.

        Args:
            slots: one for each token, or for each run of tokens when `counts` is given.
            counts: tokens of each run.
        """
        active = tuple(sorted({slot for slot in slots if slot != BASE_SLOT}))
        if not active:
            return None
        lanes = self._lanes_of(active)
        if lanes.slots == active and len(active) == 1 and all(slots):
            return TorchLoraBatch(lanes, None)
        position = {slot: i for i, slot in enumerate(lanes.slots)}
        lane = torch.tensor([position.get(slot, -1) for slot in slots], device=self._device)
        if counts is not None:
            lane = lane.repeat_interleave(torch.tensor(counts, device=self._device))
        mask = (lane[:, None] == lanes.lane_of_column).to(self._dtype)
        return TorchLoraBatch(lanes, mask[:, None, :])

    def kernel_route(self, slots: torch.Tensor) -> TritonLoraBatch | None:
        """The route of rows whose slots (B,) are on the device; None: no adapter was ever loaded.

        It holds for as long as `layout` stays.
        """
        if not self._stacks:
            return None
        parts = {
            site.name: [
                (part.start, self._stacks[part.module])
                for part in site.parts
                if part.module in self._stacks
            ]
            for site in self._sites
        }
        return TritonLoraBatch(parts, slots)

    def _lanes_of(self, active: tuple[int, ...]) -> LoraSegments:
        """Kept lanes that hold `active` and little else, or new ones."""
        wanted = set(active)
        for kept in reversed(self._lanes.values()):
            if wanted <= set(kept.slots) and len(kept.slots) <= 2 * len(active):
                self._lanes.move_to_end(kept.slots)
                return kept
        columns = [(i, slot, r) for i, slot in enumerate(active) for r in range(self._ranks[slot])]
        rows = torch.tensor([slot * self._rank + r for _, slot, r in columns], device=self._device)
        lanes = LoraSegments(
            slots=active,
            lane_of_column=torch.tensor([i for i, _, _ in columns], device=self._device),
            sites={
                site.name: built
                for site in self._sites
                if (built := self._site_lanes(site, active, rows)) is not None
            },
        )
        self._lanes[active] = lanes
        if len(self._lanes) > _KEPT_LANES:
            self._lanes.popitem(last=False)
        return lanes

    def _site_lanes(
        self, site: LoraLayer, active: tuple[int, ...], rows: torch.Tensor
    ) -> LayerSegments | None:
        """`rows` (W,): the lanes' rows in a stack that is flattened to (N * R, features)."""
        parts = [p for p in site.parts if any(p.module in self._modules[slot] for slot in active)]
        if not parts:
            return None
        a, b = [], []
        for part in parts:
            stack = self._stacks[part.module]
            a.append(stack.a.flatten(0, 1).index_select(0, rows))
            columns = stack.b.flatten(0, 1).index_select(0, rows)
            b.append((part.start, part.stop, columns))
        return LayerSegments(torch.cat(a).t().contiguous(), tuple(b))

    def _free_slot(self, name: str) -> int:
        taken = set(self._slot_of.values())
        for slot in range(1, self._num_slots):
            if slot not in taken and not self._num_users[slot]:
                return slot
        raise BankRefused(
            f"adapter '{name}' finds no free slot: {len(self._slot_of)} adapters are resident and "
            f"the bank has {self._num_slots - 1} slots, of which rows may still use evicted ones: "
            "evict an adapter, or raise engine.max_adapters"
        )

    def _grow(self, rank: int, modules: Iterable[str]) -> None:
        """Make room for this rank and for modules that no adapter had so far."""
        wanted = -(-rank // _RANK_BUCKET) * _RANK_BUCKET
        if wanted > self._rank:
            for module, old in self._stacks.items():
                new = self._new_stack(module, wanted)
                new.a[:, : self._rank] = old.a
                new.b[:, : self._rank] = old.b
                self._stacks[module] = new
            self._rank = wanted
            self._layout += 1
        for module in modules:
            if module not in self._stacks:
                self._stacks[module] = self._new_stack(module, self._rank)
                self._layout += 1

    def _new_stack(self, module: str, rank: int) -> LoraStack:
        shapes = [(self._num_slots, rank, features) for features in self._parts[module]]
        a, b = (torch.zeros(shape, dtype=self._dtype, device=self._device) for shape in shapes)
        return LoraStack(a, b)

    def _require(self, name: str) -> None:
        if name not in self._slot_of:
            listed = ", ".join(self._slot_of) or "none"
            raise BankRefused(f"adapter '{name}' is not resident (resident: {listed})")
