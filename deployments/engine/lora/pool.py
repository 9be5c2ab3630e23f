"""Know which slot each resident adapter has, and multiply batches by the adapters of their rows.

Each row of a batch carries a slot, so one product serves rows of many adapters. Loading, replacing
and evicting happen between two steps. A row keeps the slot that it began with: the slot of a
replaced or evicted adapter is reused only when no row uses it any more.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from deployments.engine.attention.memory_plan import KEPT_MIXTURES
from deployments.engine.errors import LoraPoolError
from deployments.engine.host_memory import numbers_on
from deployments.engine.lora.blocks import LoraBlocks
from deployments.engine.lora.layers import LoraBatch, LoraLayer
from deployments.engine.lora.peft_reader import AdapterWeights
from deployments.engine.lora.segments import SegmentCache, TorchLoraBatch
from deployments.engine.lora.stacks import LoraStacks, PackedLora, pack

if TYPE_CHECKING:  # imports Numba
    from deployments.engine.cpu.row_batches import RowLora

BASE_SLOT = 0


@dataclass(frozen=True, slots=True)
class SlotBatch:
    """Hold the slot of each token, for a step that finds each one's weights itself."""

    blocks: LoraBlocks
    slots: Sequence[int]


class LoraPool:
    """Hold the resident adapters. One thread at a time: the engine's.

    Args:
        in_blocks: kept as they are packed, for `slot_batch` alone; otherwise in stacks, for the
            other batches.
    """

    def __init__(
        self,
        layers: Sequence[LoraLayer],
        num_slots: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        in_blocks: bool = False,
        kept_mixtures: int = KEPT_MIXTURES,
    ) -> None:
        if num_slots < 2:
            raise ValueError(f"num_slots is {num_slots}: at least 2, the base and one adapter")
        self._stacks: LoraStacks | LoraBlocks = (
            LoraBlocks(layers, num_slots)
            if in_blocks
            else LoraStacks(layers, num_slots, dtype=dtype, device=device)
        )
        self._mixtures = SegmentCache(kept_mixtures)
        self._row_lora: RowLora | None = None
        self._dtype, self._device = dtype, device
        self._slot_of: dict[str, int] = {}
        self._names: frozenset[str] = frozenset()
        self._num_rows = [0] * num_slots  # in flight, by slot
        self._numbers = itertools.count(1)
        self._generations = [0] * num_slots  # of the weights in each slot

    @property
    def names(self) -> frozenset[str]:
        """Return the resident adapters: the same object until one is activated or evicted."""
        return self._names

    @property
    def layout(self) -> int:
        """Return a number that changes when the weights move, which voids captured graphs."""
        return self._stacks.layout

    def adapts(self, path: str) -> bool:
        """Return whether any adapter that was loaded so far changes this module of the base."""
        return self._stacks.adapts(path)

    def pack(self, weights: AdapterWeights) -> PackedLora:
        """Pack weights for `load_slot`. Any thread may call it."""
        is_pinned, in_blocks = self._device.type == "cuda", isinstance(self._stacks, LoraBlocks)
        return pack(weights, self._dtype, pinned=is_pinned, in_huge_pages=in_blocks)

    def load_slot(self, name: str, weights: PackedLora) -> int:
        """Copy weights to a free slot, which no row uses yet; `activate` puts it into service.

        Raises:
            LoraPoolError: no slot is free, or the weights do not fit.
        """
        problems = self._stacks.unsupported_modules(weights)
        if problems:
            raise LoraPoolError(f"adapter '{name}': {'; '.join(problems)}")
        slot = self._free_slot(name)
        self._stacks.write(slot, weights)
        self._generations[slot] = next(self._numbers)
        self._mixtures.forget(slot)
        return slot

    def activate(self, name: str, slot: int) -> None:
        """Give rows that begin with `name` from now on this slot."""
        self._slot_of[name] = slot
        self._names = frozenset(self._slot_of)

    def evict(self, name: str) -> None:
        """Forget an adapter. Rows that use it keep it to their end.

        Raises:
            LoraPoolError: it is not resident.
        """
        self._require(name)
        del self._slot_of[name]
        self._names = frozenset(self._slot_of)

    def generation(self, name: str | None) -> int:
        """Return a number for the weights of `name` that no others have or had; 0: the base model.

        Raises:
            LoraPoolError: it is not resident.
        """
        if name is None:
            return 0
        self._require(name)
        return self._generations[self._slot_of[name]]

    def acquire(self, name: str | None) -> int:
        """Return the slot for a row that begins with `name` now; None is the base model.

        Raises:
            LoraPoolError: `name` is not resident.
        """
        if name is None:
            return BASE_SLOT
        self._require(name)
        slot = self._slot_of[name]
        self._num_rows[slot] += 1
        return slot

    def release(self, slot: int) -> None:
        """End a row that had acquired `slot`."""
        if slot != BASE_SLOT:
            self._num_rows[slot] -= 1
            assert self._num_rows[slot] >= 0, f"slot {slot} released more often than acquired"

    def torch_batch(
        self, slots: Sequence[int], counts: Sequence[int] | None = None
    ) -> TorchLoraBatch | None:
        """Return the batch of tokens with these slots. Returns None if all are the base model's.

        Args:
            slots: one for each token, or for each run of tokens when `counts` is given.
            counts: tokens of each run.
        """
        active = tuple(sorted({slot for slot in slots if slot != BASE_SLOT}))
        if not active:
            return None
        segments = self._mixtures.find(active)
        if segments is None:
            assert isinstance(self._stacks, LoraStacks), "blocks have no segments"
            segments = self._stacks.segments(active)
            self._mixtures.add(segments)
        if segments.slots == active and len(active) == 1 and all(slots):
            return TorchLoraBatch(segments, None, None)
        position = {slot: i for i, slot in enumerate(segments.slots)}
        own_of = [position.get(slot, -1) for slot in slots]
        if counts is not None:
            own_of = _of_tokens(own_of, counts)
        own = numbers_on(self._device, own_of)
        mask = (own[:, None] == segments.segment_of_column).to(self._dtype)
        return TorchLoraBatch(segments, mask[:, None, :], own)

    def slot_batch(
        self, slots: Sequence[int], counts: Sequence[int] | None = None
    ) -> SlotBatch | None:
        """Return what `torch_batch` would, for a step that reads each token's block itself."""
        if not any(slots):
            return None
        if counts is not None:
            slots = _of_tokens(slots, counts)
        assert isinstance(self._stacks, LoraBlocks), "stacks are read by other batches"
        return SlotBatch(self._stacks, slots)

    def row_batch(self, slots: Sequence[int]) -> LoraBatch | None:
        """Return what `torch_batch` would, on a CPU, where no row depends on the others."""
        from deployments.engine.cpu.row_batches import RowLora, RowLoraBatch

        if not any(slots):
            return None
        if self._row_lora is None or self._row_lora.layout != self.layout:
            assert isinstance(self._stacks, LoraStacks), "blocks are read by another step"
            self._row_lora = RowLora(self._stacks)
        return RowLoraBatch(self._row_lora, slots)

    def triton_batch(self, slots: torch.Tensor, *, is_invariant: bool) -> LoraBatch | None:
        """Return the batch of rows with these slots (B,). Returns None if no adapter was loaded.

        It is valid while `layout` stays. is_invariant: a row's sums do not depend on the number of
        rows.
        """
        from deployments.engine.lora.triton_batch import TritonLoraBatch

        assert isinstance(self._stacks, LoraStacks), "blocks are not for a GPU"
        stacks = self._stacks.by_layer()
        return TritonLoraBatch(stacks, slots, is_invariant=is_invariant) if stacks else None

    def _free_slot(self, name: str) -> int:
        taken = set(self._slot_of.values())
        for slot in range(1, len(self._num_rows)):
            if slot not in taken and not self._num_rows[slot]:
                return slot
        raise LoraPoolError(
            f"adapter '{name}' finds no free slot: {len(self._slot_of)} adapters are resident and "
            f"there are {len(self._num_rows) - 1} slots, of which rows may still use evicted ones: "
            "evict an adapter, or raise engine.max_adapters"
        )

    def _require(self, name: str) -> None:
        if name not in self._slot_of:
            listed = ", ".join(self._slot_of) or "none"
            raise LoraPoolError(f"adapter '{name}' is not resident (resident: {listed})")


def _of_tokens(numbers: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Return each token's number, given those of runs of tokens and how many each has."""
    return [number for number, count in zip(numbers, counts, strict=True) for _ in range(count)]
