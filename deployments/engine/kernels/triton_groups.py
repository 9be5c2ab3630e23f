"""Group the rows of a batch by adapter, so that an adapter is read once for all that have it.

The groups are data, so a CUDA graph serves any mixture. Imported only where Triton runs.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.ops import RowGroups
from deployments.engine.kernels.quantised_tiles import most_parts

_FEW_ROWS, _MANY_ROWS = 256, 1024  # up to so many, tiles of 16 rows; from so many on, of 64
ONE_ORDER_ROWS = 32  # of a tile, at most, which tensor cores add up as they do 16
_MOST_TILE_ROWS = 64
_COMPARED = 64  # rows that are compared with each other at a time


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
def tile_rows(order, tiles, tile, BM: tl.constexpr):
    """Return a tile's slot, its rows (BM,), and which of these there are."""
    slot = tl.load(tiles + tile * 3).to(tl.int64)
    first = tl.load(tiles + tile * 3 + 1)
    i = tl.arange(0, BM)
    mask = i < tl.load(tiles + tile * 3 + 2)
    return slot, tl.load(order + first + i, mask=mask, other=0).to(tl.int64), mask


@triton.jit
def rows_of_a(a0, a1, a2, slot, u, K, P: tl.constexpr, R: tl.constexpr):
    """Return where the ranks u of an adapter's P modules begin, R of each module side by side."""
    at = (slot * R + u % R) * K
    rows = a0 + at
    module = u // R % P
    if P > 1:
        rows = tl.where(module == 1, a1 + at, rows)
    if P > 2:
        rows = tl.where(module == 2, a2 + at, rows)
    return rows


def group_rows(
    slots: torch.Tensor, num_slots: int, *, ranks: int, inputs: int, is_invariant: bool = False
) -> RowGroups:
    """Group rows with these slots (B,).

    Args:
        ranks: of all modules of one layer together, at most.
        inputs: of a layer, at most.
        is_invariant: a row's sums do not depend on the number of rows.
    """
    rows, device = len(slots), slots.device
    size = 16 if rows <= _FEW_ROWS else ONE_ORDER_ROWS
    if rows >= _MANY_ROWS and not is_invariant:
        size = _MOST_TILE_ROWS
    num_tiles = min(rows, num_slots + rows // size)
    integers = functools.partial(torch.empty, dtype=torch.int32, device=device)
    floats = functools.partial(torch.empty, dtype=torch.float32, device=device)
    parts = most_parts(inputs)
    groups = RowGroups(
        order=integers(rows),
        tiles=integers(num_tiles, 3),
        active=integers(1 + min(rows, num_slots - 1)),
        shrunk=floats(rows * ranks),
        partials=floats(rows * ranks * parts if parts > 1 else 0),
        tile_rows=size,
    )
    places = integers(rows, 3)
    grid = (triton.cdiv(rows, _COMPARED),)
    _order_kernel[grid](slots, groups.order, places, rows, BLOCK=_COMPARED)
    _tiles_kernel[grid](
        slots, places, groups.tiles, groups.active, rows, num_tiles,
        BM=size, BLOCK=_COMPARED,
    )  # fmt: skip
    return groups


def three(items: Sequence[Any]) -> list[Any]:
    """Return three items, since the kernels take three; missing ones repeat the first, unread."""
    if not 1 <= len(items) <= 3:
        raise ValueError(f"{len(items)} modules in one product; 1 to 3 are possible")
    return [*items, items[0], items[0]][:3]
