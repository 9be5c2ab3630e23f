"""Group the rows of a batch by adapter, and multiply each group by its adapter's weights.

Each adapter is read once for the rows that have it, not once for each of them. The groups are
data, so a CUDA graph serves any mixture. Imported only where Triton runs.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.backend import launch_options, overlaps
from deployments.engine.kernels.ops import Expansion, RowGroups
from deployments.engine.kernels.triton_overlap import after_earlier_kernels, before_the_next_kernel

_FEW_ROWS = 256  # up to so many, tiles of 16 rows; tensor cores add up larger ones alike
_PART = 1024  # inputs that one program of a shrink takes, about
_MOST_PARTS = 16
_BLOCK_K = 128
_RANKS = 16  # of one program of a shrink: the fewest that tensor cores take
_COLUMNS = 128  # of one program of an expansion
_COMPARED = 64  # rows that are compared with each other at a time
_MOST_TILES = 1 << 16


@triton.jit(do_not_specialize=["B"])
def _order_kernel(slots, order, places, B, BLOCK: tl.constexpr):
    """Order the rows by slot. Program (BLOCK rows).

    places: (B, 3): a row's place in `order`, its number in its group, and the group's size.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(slots + i, mask=i < B, other=0)
    earlier = tl.zeros((BLOCK,), tl.int32)
    number = tl.zeros((BLOCK,), tl.int32)
    size = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, B, BLOCK):
        j = first + tl.arange(0, BLOCK)
        others = tl.load(slots + j, mask=j < B, other=-1)
        equal = (others[None, :] == own[:, None]).to(tl.int32)
        is_less = (others[None, :] < own[:, None]) & (j < B)[None, :]
        earlier += tl.sum(is_less.to(tl.int32), 1)
        size += tl.sum(equal, 1)
        number += tl.sum(equal * (j[None, :] < i[:, None]).to(tl.int32), 1)
    tl.store(order + earlier + number, i, mask=i < B)
    tl.store(places + i * 3, earlier + number, mask=i < B)
    tl.store(places + i * 3 + 1, number, mask=i < B)
    tl.store(places + i * 3 + 2, size, mask=i < B)


@triton.jit(do_not_specialize=["B", "T"])
def _tiles_kernel(slots, places, tiles, active, B, T, BM: tl.constexpr, BLOCK: tl.constexpr):
    """Cut the groups into tiles of BM rows, and list the adapters. Program (BLOCK rows).

    Of T tiles those behind the last have no rows. The first row of a tile writes it.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    im = i < B
    own = tl.load(slots + i, mask=im, other=0)
    earlier = tl.zeros((BLOCK,), tl.int32)  # tiles
    adapters = tl.zeros((BLOCK,), tl.int32)  # with a lower slot
    num_tiles = 0
    num_adapters = 0
    for first in range(0, B, BLOCK):
        j = first + tl.arange(0, BLOCK)
        others = tl.load(slots + j, mask=j < B, other=0)
        number = tl.load(places + j * 3 + 1, mask=j < B, other=1)
        begins = ((number % BM == 0) & (j < B)).to(tl.int32)
        is_first = ((number == 0) & (others > 0) & (j < B)).to(tl.int32)
        less = (others[None, :] < own[:, None]).to(tl.int32)
        earlier += tl.sum(less * begins[None, :], 1)
        adapters += tl.sum(less * is_first[None, :], 1)
        num_tiles += tl.sum(begins, 0)
        num_adapters += tl.sum(is_first, 0)
    place = tl.load(places + i * 3, mask=im, other=0)
    number = tl.load(places + i * 3 + 1, mask=im, other=1)
    size = tl.load(places + i * 3 + 2, mask=im, other=0)
    own_tile = tiles + (earlier + number // BM) * 3
    begins = im & (number % BM == 0)
    tl.store(own_tile, own.to(tl.int32), mask=begins)
    tl.store(own_tile + 1, place, mask=begins)
    tl.store(own_tile + 2, tl.minimum(BM, size - number), mask=begins)
    tl.store(tiles + i * 3 + 2, 0, mask=(i >= num_tiles) & (i < T))
    tl.store(active + 1 + adapters, own.to(tl.int32), mask=im & (number == 0) & (own > 0))
    if tl.program_id(0) == 0:
        tl.store(active, num_adapters)


@triton.jit
def _tile_rows(order, tiles, tile, BM: tl.constexpr):
    """Return a tile's slot, its rows (BM,), and which of these there are."""
    slot = tl.load(tiles + tile * 3).to(tl.int64)
    first = tl.load(tiles + tile * 3 + 1)
    i = tl.arange(0, BM)
    mask = i < tl.load(tiles + tile * 3 + 2)
    return slot, tl.load(order + first + i, mask=mask, other=0).to(tl.int64), mask


@triton.jit(do_not_specialize=["B"])
def _shrink_kernel(
    x, a0, a1, a2, order, tiles, out, partials, arrived, x_row, K, B, length,
    P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, EVEN_K: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Compute RC ranks of one module for a tile. Program (tile, module and ranks, part of the sum).

    The program that comes last adds the parts, always in the same order.
    """
    before_the_next_kernel(OVERLAPS)
    tile = tl.program_id(0)
    part = tl.program_id(2)
    if tl.load(tiles + tile * 3 + 2) == 0:
        return
    slot, rows, im = _tile_rows(order, tiles, tile, BM)
    BLOCKS: tl.constexpr = (R + RC - 1) // RC
    module = tl.program_id(1) // BLOCKS
    r = tl.program_id(1) % BLOCKS * RC + tl.arange(0, RC)
    rm = r < R
    a = a0
    if module == 1:
        a = a1
    if module == 2:
        a = a2
    lines = x + rows[None, :] * x_row
    weights = a + slot * (R * K) + r[:, None] * K
    acc = tl.zeros((RC, BM), tl.float32)
    if slot != 0:
        for first in range(part * length, tl.minimum(K, (part + 1) * length), BK):
            k = first + tl.arange(0, BK)
            w_mask = rm[:, None]
            x_mask = im[None, :]
            if not EVEN_K:
                w_mask = w_mask & (k < K)[None, :]
                x_mask = x_mask & (k < K)[:, None]
            ws = tl.load(weights + k[None, :], mask=w_mask, other=0.0)
            xs = tl.load(lines + k[:, None], mask=x_mask, other=0.0)
            acc = tl.dot(ws, xs, acc, input_precision="ieee")
    at = rows[None, :] * (P * R) + module * R + r[:, None]
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
def _expanded(
    shrunk, stack, slot, rows, im, c, n, module, kind: tl.constexpr, P: tl.constexpr,
    R: tl.constexpr, RC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Return what a tile's adapter adds to the columns c (BN,) of n of one module."""
    acc = tl.zeros((BM, BN), tl.float32)
    for first in tl.static_range(0, R, RC):
        r = first + tl.arange(0, RC)
        at = shrunk + (rows[:, None] * P + module) * R + r[None, :]
        s = tl.load(at, mask=im[:, None] & (r < R)[None, :], other=0.0).to(kind)
        weights = stack + slot * (R * n) + r[:, None] * n + c[None, :]
        ws = tl.load(weights, mask=(r < R)[:, None] & (c < n)[None, :], other=0.0)
        acc = tl.dot(s, ws, acc, input_precision="ieee")
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
    slot, rows, im = _tile_rows(order, tiles, tile, BM)
    if slot != 0:
        kind: tl.constexpr = y.dtype.element_ty
        acc = _expanded(shrunk, stack, slot, rows, im, c, n, module, kind, P, R, RC, BM, BN)
        at = y + rows[:, None] * y_row + start + c[None, :]
        mask = im[:, None] & (c < n)[None, :]
        old = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        if has_gains:
            old *= tl.load(gains + slot * n + c, mask=c < n, other=0.0)[None, :]
        tl.store(at, (old + acc).to(kind), mask=mask)


def group_rows(slots: torch.Tensor, num_slots: int, *, ranks: int, inputs: int) -> RowGroups:
    """Group rows with these slots (B,).

    Args:
        ranks: of all modules of one layer together, at most.
        inputs: of a layer, at most.
    """
    rows, device = len(slots), slots.device
    tile_rows = 16 if rows <= _FEW_ROWS else 32
    num_tiles = min(rows, num_slots + rows // tile_rows)
    integers = functools.partial(torch.empty, dtype=torch.int32, device=device)
    floats = functools.partial(torch.empty, dtype=torch.float32, device=device)
    parts = min(_MOST_PARTS, inputs // _PART)
    groups = RowGroups(
        order=integers(rows),
        tiles=integers(num_tiles, 3),
        active=integers(1 + min(rows, num_slots)),
        shrunk=floats(rows * ranks),
        partials=floats(rows * ranks * parts if parts > 1 else 0),
        tile_rows=tile_rows,
    )
    places = integers(rows, 3)
    grid = (triton.cdiv(rows, _COMPARED),)
    _order_kernel[grid](slots, groups.order, places, rows, BLOCK=_COMPARED)
    _tiles_kernel[grid](
        slots, places, groups.tiles, groups.active, rows, num_tiles,
        BM=tile_rows, BLOCK=_COMPARED,
    )  # fmt: skip
    return groups


def lora_shrink(x: torch.Tensor, stacks: Sequence[torch.Tensor], groups: RowGroups) -> torch.Tensor:
    """Multiply each row by its own A, for the 1 to 3 modules of a layer at once.

    A product by x that is launched next may run beside it (`Expansion.is_beside`).
    x (B, in), each module's stack (N, R, in) -> (B, P, R) float32, valid until the next shrink.
    """
    (rows, inputs), modules, rank = x.shape, len(stacks), stacks[0].shape[1]
    parts, length = _parts(inputs)
    out = groups.shrunk[: rows * modules * rank].view(rows, modules, rank)
    blocks = modules * triton.cdiv(rank, _RANKS)
    assert len(groups.tiles) * blocks <= _MOST_TILES, "more tiles than counters"
    _shrink_kernel[len(groups.tiles), blocks, parts](
        x, *three(stacks), groups.order, groups.tiles, out, groups.partials, _counters(x.device),
        x.stride(0), inputs, rows, length,
        P=modules, R=rank, RC=_RANKS, PARTS=parts, BM=groups.tile_rows, BK=_BLOCK_K,
        EVEN_K=inputs % _BLOCK_K == 0, OVERLAPS=overlaps(x.device), num_warps=4, num_stages=4,
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
    columns, rank = [b.shape[2] for b in tensors], expansion.rank
    grid = (len(groups.tiles), triton.cdiv(max(columns), _COLUMNS), len(tensors))
    _expand_kernel[grid](
        y, expansion.shrunk, *three(tensors),
        *three([y if f is None else f for f in factors]),
        *three([start for start, _ in expansion.stacks]), *three(columns),
        groups.order, groups.tiles, y.stride(0),
        P=len(tensors), R=rank, RC=min(64, max(16, triton.next_power_of_2(rank))),
        BM=groups.tile_rows, BN=_COLUMNS,
        OVERLAPS=overlaps(y.device), num_warps=4, **launch_options(y.device),
        **dict(zip(("G0", "G1", "G2"), three([f is not None for f in factors]), strict=True)),
    )  # fmt: skip


def _parts(inputs: int) -> tuple[int, int]:
    """Return into how many parts a sum over inputs is cut, and how many each takes: by their number
    alone, so that no row's sum depends on the others."""
    parts = max(1, min(_MOST_PARTS, inputs // _PART))
    length = triton.cdiv(triton.cdiv(inputs, parts), _BLOCK_K) * _BLOCK_K
    return triton.cdiv(inputs, length), length


def three(items: Sequence[Any]) -> list[Any]:
    """Return three items, since the kernels take three; missing ones repeat the first, unread."""
    if not 1 <= len(items) <= 3:
        raise ValueError(f"{len(items)} modules in one product; 1 to 3 are possible")
    return [*items, items[0], items[0]][:3]


@functools.cache
def _counters(device: torch.device) -> torch.Tensor:
    """Return zeros, which each shrink leaves as zeros: one at a time uses them."""
    return torch.zeros(_MOST_TILES, dtype=torch.int32, device=device)
