"""Plan a GPU's memory once the weights are on it: what is left for keys and values, which rows fit.

    left = free - reserved
    free: the card's free memory, or what the process may still take of its share, if that is less
    reserved: adapters, activations of the longest prefill, logits, and what CUDA takes itself

Each part of `reserved` is an upper bound from shapes (`reserve`), so that nothing runs out of
memory once the rows are there; adapters that need more than their part are refused when they are
added (lora/stacks.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deployments.engine.attention.kv_cache import ALIGNMENT
from deployments.engine.attention.row_plan import full_length, plan_rows

MIB = 2**20
SCRATCH_POSITIONS = (
    48  # positions beside the rows: the graphs' padding, and the probe of an adapter
)
CAPTURED_TOKENS = 1024  # of the longest prefill that is captured, and so has memory of its own
CAPTURED_PROMPTS = 16
KEPT_MIXTURES = 8  # of adapters side by side (lora/pool.py)
# Of one logit: while a row draws, itself, its copies in float32, sorted ones, their ids; while a
# prompt is scored, 64 positions at once (scores/scorer.py), itself and two copies in float32.
_DRAWN_BYTES, _SCORED_BYTES, _SCORED = 28, 10, 64
# Kernels as they are loaded, graphs, and pieces that torch's allocator leaves; measured on an H100
# (docs/engine.md).
_RUNTIME = 208 * MIB
_STREAMS = 2  # on which cuBLAS multiplies, each with a workspace: of serving, and of captures
_WHOLE = "all rows fit at full length"


@dataclass(frozen=True, slots=True)
class Shapes:
    """Hold the numbers that `reserve` needs. Sizes are in elements.

    adapter: A and B of one slot, all modules at the rank of the stacks.
    widest: inputs and outputs of the widest fused layer.
    dequantised: of a quantised weight, at once, for a long prefill; 0: none is quantised.
    shrunk: float32 of one token, where kernels find its adapter (kernels/triton_groups.py); 0:
        torch copies a batch's adapters side by side.
    prefill_tokens: of one step.
    workspace: of cuBLAS on one stream, in bytes.
    """

    num_slots: int
    adapter: int
    widest: int
    dequantised: int
    shrunk: int
    prefill_tokens: int
    max_rows: int
    vocab_size: int
    itemsize: int
    workspace: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """Hold what a GPU keeps free of rows, in bytes."""

    adapters: int
    prefill: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        return self.adapters + self.prefill + self.logits + self.runtime

    def __str__(self) -> str:
        named = {
            "adapters": self.adapters,
            "prefill": self.prefill,
            "logits": self.logits,
            "CUDA": self.runtime,
        }
        return ", ".join(f"{name} {size / MIB:.0f}" for name, size in named.items())


def is_captured(prefill_tokens: int, max_rows: int) -> bool:
    """Return whether every prefill is short enough for a captured graph."""
    return prefill_tokens <= CAPTURED_TOKENS and max_rows <= CAPTURED_PROMPTS


def kept_mixtures(shapes: Shapes, free: int) -> int:
    """Return how many mixtures of adapters stay copied side by side (lora/pool.py): as many as fit
    in a fiftieth of the free memory, and one at least; none where kernels need no copies."""
    if shapes.shrunk:
        return 0
    return max(1, min(KEPT_MIXTURES, free // 50 // max(1, _mixture(shapes))))


def reserve(shapes: Shapes, free: int) -> Reserved:
    """Return bounds of what is taken beside the weights and the rows.

    A prefill holds at most twice the inputs and outputs of the widest layer for each token: the
    states and their norm, the products, and their activation.
    """
    size = shapes.itemsize
    prefills = [min(shapes.prefill_tokens, CAPTURED_TOKENS)]
    if not is_captured(shapes.prefill_tokens, shapes.max_rows):
        prefills.append(shapes.prefill_tokens)  # captured ones keep their memory for themselves
    prefill = sum(2 * shapes.widest * tokens + shapes.dequantised for tokens in prefills) * size
    adapters = shapes.num_slots * shapes.adapter * size + 4 * shapes.shrunk * sum(prefills)
    if not shapes.shrunk:
        adapters += (kept_mixtures(shapes, free) + 1) * _mixture(shapes)
    logits = max(shapes.max_rows * _DRAWN_BYTES, _SCORED * _SCORED_BYTES) * shapes.vocab_size
    return Reserved(adapters, prefill, logits, _RUNTIME + _STREAMS * shapes.workspace)


def _mixture(shapes: Shapes) -> int:
    """Return the bytes of the adapters of one prefill, side by side."""
    one = shapes.adapter * shapes.itemsize
    if is_captured(shapes.prefill_tokens, shapes.max_rows):
        return one  # only the probe of an adapter makes a copy
    return min(shapes.num_slots, shapes.max_rows) * one


@dataclass(frozen=True, slots=True)
class RowPlan:
    """Hold the positions of each row, how many rows were asked for, and why these."""

    capacities: tuple[int, ...]
    asked: int
    reason: str
    num_mixtures: int = KEPT_MIXTURES

    def report(self) -> Mapping[str, Any]:
        """Return it for /readyz: rows by their positions, the shortest first."""
        sizes = {str(size): self.capacities.count(size) for size in sorted(set(self.capacities))}
        return {
            "asked": self.asked,
            "given": len(self.capacities),
            "by_positions": sizes,
            "reason": self.reason,
        }


def plan_card(
    max_rows: int,
    num_positions: int,
    bytes_per_position: int,
    *,
    free: int,
    shapes: Shapes,
    budget: int | None,
) -> RowPlan:
    """Return the rows that fit on a card.

    Args:
        budget: engine.kv_memory_mib in bytes; None: all that is left.

    Raises:
        ValueError: one full row does not fit, or more is asked for than is left; names the numbers
            and the settings.
    """
    reserved, mixtures = reserve(shapes, free), kept_mixtures(shapes, free)
    left = max(0, free - reserved.total - SCRATCH_POSITIONS * bytes_per_position)
    full = full_length(num_positions)
    needed = full * bytes_per_position
    seen = (
        f"{free / MIB:.0f} MiB of the GPU are free beside the weights, of which "
        f"{reserved.total / MIB:.0f} are reserved ({reserved})"
    )
    if left < needed:
        raise ValueError(
            f"{seen}; {left / MIB:.0f} MiB are left for keys and values, and one answer of "
            f"{num_positions} positions needs {-(-needed // MIB)}: lower engine.max_input_tokens, "
            "engine.max_output_tokens, engine.prefill_tokens_per_step or engine.max_adapters, set "
            "quantization: int8 or nf4, or take a larger GPU"
        )
    capacities = plan_rows(
        max_rows, num_positions, bytes_per_position, left if budget is None else budget
    )
    used = sum(capacities) * bytes_per_position
    if used > left:
        raise ValueError(
            f"engine.kv_memory_mib: rows of {used / MIB:.0f} MiB, and {seen}: lower it to at most "
            f"{left // MIB}, or set it to null"
        )
    reason = _WHOLE
    if len(capacities) < max_rows or capacities[0] < full:
        reason = (
            f"{max_rows} rows of {full} positions need {max_rows * needed / MIB:.0f} MiB, and "
            f"{left / MIB:.0f} are left: {seen}"
        )
        if budget is not None:
            reason = f"engine.kv_memory_mib is {budget // MIB}"
    return RowPlan(capacities, max_rows, reason, mixtures)


def plan_host(
    max_rows: int, num_positions: int, bytes_per_position: int, *, free: int, budget: int | None
) -> RowPlan:
    """Return the rows of a CPU: all, as far as half of the free memory or a budget holds them.

    Raises:
        ValueError: that does not hold one answer.
    """
    full = full_length(num_positions)
    wanted = max_rows * (full + ALIGNMENT) * bytes_per_position
    limit = min(wanted, free // 2) if budget is None else budget
    capacities = plan_rows(max_rows, num_positions, bytes_per_position, limit)
    reason = _WHOLE
    if capacities != (full,) * max_rows:
        reason = f"half of the free memory is {limit // MIB} MiB"
        if budget is not None:
            reason = f"engine.kv_memory_mib is {budget // MIB}"
    return RowPlan(capacities, max_rows, reason)


def free_bytes(device: torch.device) -> int:
    """Return what this process may still take of a GPU, beside what torch holds already."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    share = torch.cuda.get_per_process_memory_fraction(index)
    return max(0, min(free, int(total * share) - torch.cuda.memory_reserved(device)))


def workspace_bytes(capability: tuple[int, int], setting: str | None) -> int:
    """Return what torch gives cuBLAS for one stream: 32 MiB on Hopper and later, else 8 MiB.

    Args:
        setting: CUBLAS_WORKSPACE_CONFIG, pairs of KiB and how many of them: ":4096:2:16:8".
    """
    pairs = re.findall(r":(\d+):(\d+)", setting or "")
    if pairs:
        return sum(int(size) * int(count) for size, count in pairs) * 1024
    return (32 if capability >= (9, 0) else 9) * MIB


def room_on(device: torch.device) -> float:
    """Return the bytes that new tensors may take while a decoder serves; on a CPU nobody counts."""
    if device.type != "cuda":
        return float("inf")
    held, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    return free_bytes(device) + (held - used) // 2  # the rest of what torch holds is in pieces
