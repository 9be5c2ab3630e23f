"""Multiply rows that are grouped by adapter by their LoRA weights. Imported only where Triton runs.

A program takes a tile: rows of one adapter, at most 16, 32 or 64.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.backend import counters, launch_options, overlaps
from deployments.engine.kernels.ops import Expansion, RowGroups
from deployments.engine.kernels.quantised_tiles import SHRINK_INPUTS, parts_of
from deployments.engine.kernels.triton_groups import (
    ONE_ORDER_ROWS,
    rows_of_a,
    three,
    tile_rows,
)
from deployments.engine.kernels.triton_lora import activated
from deployments.engine.kernels.triton_overlap import (
    after_earlier_kernels,
    before_the_next_kernel,
    launch_next,
)

# Ranks of one program of a shrink: the fewest that tensor cores take, and the most, of large tiles.
_RANKS, _MOST_RANKS = 16, 64
_COLUMNS = 128  # of one program of an expansion
_GATED_COLUMNS = 64  # of one that applies an activation too
_MOST_TILES = 1 << 18  # times blocks of ranks: a prompt of 128,000 tokens with rank 256


@triton.jit(do_not_specialize=["B"])
def _shrink_kernel(
    x, a0, a1, a2, order, tiles, out, partials, arrived, x_row, K, B, length,
    P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, EVEN_K: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Compute RC of the P times R ranks of all modules for a tile. Program (tile, ranks, part of
    the sum).

    The program that comes last adds the parts, always in the same order.
    """
    before_the_next_kernel(OVERLAPS)
    tile = tl.program_id(0)
    part = tl.program_id(2)
    if tl.load(tiles + tile * 3 + 2) == 0:
        return
    slot, rows, im = tile_rows(order, tiles, tile, BM)
    u = tl.program_id(1) * RC + tl.arange(0, RC)
    rm = u < P * R
    weights = rows_of_a(a0, a1, a2, slot, u, K, P, R)
    lines = x + rows[None, :] * x_row
    acc = tl.zeros((RC, BM), tl.float32)
    if slot != 0:
        for first in range(part * length, tl.minimum(K, (part + 1) * length), BK):
            k = first + tl.arange(0, BK)
            w_mask = rm[:, None]
            x_mask = im[None, :]
            if not EVEN_K:
                w_mask = w_mask & (k < K)[None, :]
                x_mask = x_mask & (k < K)[:, None]
            ws = tl.load(weights[:, None] + k[None, :], mask=w_mask, other=0.0)
            xs = tl.load(lines + k[:, None], mask=x_mask, other=0.0)
            acc = tl.dot(ws, xs, acc, input_precision="ieee")
    at = rows[None, :] * (P * R) + u[:, None]
    mask = im[None, :] & rm[:, None]
    is_last = True
    if PARTS > 1:
        size = B.to(tl.int64) * (P * R)
        tl.store(partials + part * size + at, acc, mask=mask, cache_modifier=".cg")
        tl.debug_barrier()  # all of the part is written before it counts as arrived
        counter = arrived + tile * tl.num_programs(1) + tl.program_id(1)
        is_last = tl.atomic_add(counter, 1, sem="acq_rel") == PARTS - 1
        if is_last:
            tl.store(counter, 0)
            acc = tl.zeros((RC, BM), tl.float32)
            for other in tl.static_range(0, PARTS):
                acc += tl.load(
                    partials + other * size + at, mask=mask, other=0.0, cache_modifier=".cg"
                )
    if is_last:
        tl.store(out + at, acc, mask=mask)


@triton.jit
def _b_of(stack, slot, first, c, n, R: tl.constexpr, RC: tl.constexpr):
    """Return RC ranks of an adapter's B (RC, BN) at columns c of n, from rank `first` on."""
    r = first + tl.arange(0, RC)
    weights = stack + slot * (R * n) + r[:, None] * n + c[None, :]
    mask = (r < R)[:, None] & (c < n)[None, :] & (slot != 0)
    return tl.load(weights, mask=mask, other=0.0)


@triton.jit
def _expanded(
    shrunk, stack, weights, slot, rows, im, c, n, module, kind: tl.constexpr, P: tl.constexpr,
    R: tl.constexpr, RC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Return what a tile's adapter adds to the columns c (BN,) of n of one module, of whose B
    `weights` are the first RC ranks."""
    acc = tl.zeros((BM, BN), tl.float32)
    for first in tl.static_range(0, R, RC):
        if first > 0:
            weights = _b_of(stack, slot, first, c, n, R, RC)
        r = first + tl.arange(0, RC)
        at = shrunk + (rows[:, None] * P + module) * R + r[None, :]
        s = tl.load(at, mask=im[:, None] & (r < R)[None, :], other=0.0).to(kind)
        acc = tl.dot(s, weights, acc, input_precision="ieee")
    return acc


@triton.jit
def _expand_kernel(
    y, shrunk, b0, b1, b2, g0, g1, g2, start0, start1, start2, n0, n1, n2, order, tiles, y_row,
    P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    G0: tl.constexpr, G1: tl.constexpr, G2: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Add to BN columns of one module for a tile. Program (tile, columns, module).

    G0 to G2: whether the columns of that module are multiplied by gains first.
    """
    launch_next(OVERLAPS)
    after_earlier_kernels(OVERLAPS)
    tile = tl.program_id(0)
    module = tl.program_id(2)
    stack = b0
    gains = g0
    start = start0
    n = n0
    has_gains = G0
    if module == 1:
        stack = b1
        gains = g1
        start = start1
        n = n1
        has_gains = G1
    if module == 2:
        stack = b2
        gains = g2
        start = start2
        n = n2
        has_gains = G2
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    if (tl.load(tiles + tile * 3 + 2) == 0) | (tl.program_id(1) * BN >= n):
        return
    slot, rows, im = tile_rows(order, tiles, tile, BM)
    if slot != 0:
        kind: tl.constexpr = y.dtype.element_ty
        weights = _b_of(stack, slot, 0, c, n, R, RC)
        acc = _expanded(
            shrunk, stack, weights, slot, rows, im, c, n, module, kind, P, R, RC, BM, BN
        )
        at = y + rows[:, None] * y_row + start + c[None, :]
        mask = im[:, None] & (c < n)[None, :]
        old = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        if has_gains:
            old *= tl.load(gains + slot * n + c, mask=c < n, other=0.0)[None, :]
        tl.store(at, (old + acc).to(kind), mask=mask)


@triton.jit
def _expand_gated_kernel(
    y, out, shrunk, gate_b, value_b, gate_n, value_n, first_value, order, tiles, F,
    GATE: tl.constexpr, VALUE: tl.constexpr, P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, IS_SILU: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Compute BN columns of act(gate) * value for a tile. Program (tile, columns).

    The tile, and the first ranks of B, are read before earlier kernels end: the rows were grouped
    when the step began. GATE, VALUE: the modules whose adapters are added first, perhaps one for
    both; -1 for none. They have gate_n and value_n columns; the values begin at column
    `first_value` of theirs.
    """
    launch_next(OVERLAPS)
    tile = tl.program_id(0)
    if tl.load(tiles + tile * 3 + 2) == 0:
        return
    slot, rows, im = tile_rows(order, tiles, tile, BM)
    c = tl.program_id(1) * BN + tl.arange(0, BN)
    if GATE >= 0:
        gate_weights = _b_of(gate_b, slot, 0, c, gate_n, R, RC)
    if VALUE >= 0:
        value_weights = _b_of(value_b, slot, 0, first_value + c, value_n, R, RC)
    after_earlier_kernels(OVERLAPS)
    mask = im[:, None] & (c < F)[None, :]
    at = y + rows[:, None] * (2 * F) + c[None, :]
    kind: tl.constexpr = y.dtype.element_ty
    gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(at + F, mask=mask, other=0.0).to(tl.float32)
    if slot != 0:
        if GATE >= 0:
            gate += _expanded(
                shrunk, gate_b, gate_weights, slot, rows, im, c, gate_n, GATE, kind, P, R, RC, BM,
                BN,
            )  # fmt: skip
        if VALUE >= 0:
            value += _expanded(
                shrunk, value_b, value_weights, slot, rows, im, first_value + c, value_n, VALUE,
                kind, P, R, RC, BM, BN,
            )  # fmt: skip
    acted = activated(gate.to(kind).to(tl.float32), IS_SILU).to(kind).to(tl.float32)
    product = acted * value.to(kind).to(tl.float32)
    tl.store(out + rows[:, None] * F + c[None, :], product.to(kind), mask=mask)


def lora_shrink(x: torch.Tensor, stacks: Sequence[torch.Tensor], groups: RowGroups) -> torch.Tensor:
    """Multiply each row by its own A, for the 1 to 3 modules of a layer at once.

    A product by x that is launched next may run beside it (`Expansion.is_beside`).
    x (B, in), each module's stack (N, R, in) -> (B, P, R) float32, valid until the next shrink.
    """
    (rows, inputs), modules, rank = x.shape, len(stacks), stacks[0].shape[1]
    is_large = groups.tile_rows > ONE_ORDER_ROWS
    parts, length = parts_of(inputs, is_large=is_large)
    out = groups.shrunk[: rows * modules * rank].view(rows, modules, rank)
    together = _RANKS
    if is_large:
        together = max(_RANKS, min(_MOST_RANKS, triton.next_power_of_2(modules * rank)))
    blocks = triton.cdiv(modules * rank, together)
    assert len(groups.tiles) * blocks <= _MOST_TILES, "more tiles than counters"
    _shrink_kernel[len(groups.tiles), blocks, parts](
        x, *three(stacks), groups.order, groups.tiles, out, groups.partials,
        counters("shrink", _MOST_TILES, x.device), x.stride(0), inputs, rows, length,
        P=modules, R=rank, RC=together, PARTS=parts, BM=groups.tile_rows, BK=SHRINK_INPUTS,
        EVEN_K=inputs % SHRINK_INPUTS == 0, OVERLAPS=overlaps(x.device), num_warps=4, num_stages=4,
        **launch_options(x.device),
    )  # fmt: skip
    return out


def lora_expand_add(
    y: torch.Tensor, expansion: Expansion, gains: Sequence[torch.Tensor | None] = ()
) -> None:
    """Add the expansion, whose rows are grouped, to y (B, out) in place; y's rows must be
    contiguous.

    gains: of each module (N, columns) float32, by which its columns of y are multiplied first; ().
    """
    groups, tensors = expansion.groups, [b for _, b in expansion.stacks]
    assert groups is not None, "rows that are not grouped"
    factors = list(gains) or [None] * len(tensors)
    unread = next((f for f in factors if f is not None), y)  # one dtype for all three
    columns, rank = [b.shape[2] for b in tensors], expansion.rank
    grid = (len(groups.tiles), triton.cdiv(max(columns), _COLUMNS), len(tensors))
    _expand_kernel[grid](
        y, expansion.shrunk, *three(tensors),
        *three([unread if f is None else f for f in factors]),
        *three([start for start, _ in expansion.stacks]), *three(columns),
        groups.order, groups.tiles, y.stride(0),
        P=len(tensors), R=rank, RC=_ranks_together(rank),
        BM=groups.tile_rows, BN=_COLUMNS,
        OVERLAPS=overlaps(y.device), num_warps=4, **launch_options(y.device),
        **dict(zip(("G0", "G1", "G2"), three([f is not None for f in factors]), strict=True)),
    )  # fmt: skip


def lora_expand_gated(y: torch.Tensor, expansion: Expansion, activation: str) -> torch.Tensor:
    """Return ops.gated_activation (B, F) of y (B, 2 F), contiguous, with the expansion, whose rows
    are grouped."""
    groups, width = expansion.groups, y.shape[1] // 2
    assert groups is not None, "rows that are not grouped"
    gate, value = (_module_with(column, expansion) for column in (0, width))
    stacks = [y if i < 0 else expansion.stacks[i][1] for i in (gate, value)]
    first_value = 0 if value < 0 else width - expansion.stacks[value][0]
    out = torch.empty(len(y), width, dtype=y.dtype, device=y.device)
    _expand_gated_kernel[len(groups.tiles), triton.cdiv(width, _GATED_COLUMNS)](
        y, out, expansion.shrunk, *stacks, *(b.shape[-1] for b in stacks), first_value,
        groups.order, groups.tiles, width,
        GATE=gate, VALUE=value, P=len(expansion.stacks), R=expansion.rank,
        RC=_ranks_together(expansion.rank), BM=groups.tile_rows, BN=_GATED_COLUMNS,
        IS_SILU=activation == "silu", OVERLAPS=overlaps(y.device), num_warps=4,
        **launch_options(y.device),
    )  # fmt: skip
    return out


def _module_with(column: int, expansion: Expansion) -> int:
    """Return the number of the module that this column belongs to; -1 if none is adapted there."""
    for number, (first, b) in enumerate(expansion.stacks):
        if first <= column < first + b.shape[2]:
            return number
    return -1


def _ranks_together(rank: int) -> int:
    return int(min(64, max(16, triton.next_power_of_2(rank))))
