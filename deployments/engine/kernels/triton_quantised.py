"""Multiply by quantised and plain weights, and add adapters to that, with Triton kernels.

Weight-only: x stays as it is, weights become its dtype in registers, sums are float32. A weight is
read once, so few rows take the time of its bytes. The order of its inputs is that of
quantised/interleaved.py. Imported only where Triton runs.
"""

import triton
import triton.language as tl

from deployments.engine.kernels.triton_dequantise import converted, scaled_entries
from deployments.engine.kernels.triton_expansion import some_weights, with_units
from deployments.engine.kernels.triton_groups import rows_of_a
from deployments.engine.kernels.triton_lora import activated
from deployments.engine.kernels.triton_overlap import after_earlier_kernels, launch_next


@triton.jit
def _row_of(i, WARPS: tl.constexpr):
    """Return the output that row i of a tile holds, so that each thread loads its fragment's rows:
    a warp loads eight rows at a time, and multiplies two times eight neighbours."""
    two = 16 * WARPS
    return i // two * two + i // 8 % WARPS * 16 + i // (8 * WARPS) % 2 * 8 + i % 8


@triton.jit
def _fragment(tile, BN: tl.constexpr, WARPS: tl.constexpr):
    """Put rows and inputs (BN, 64) or more into their order. No thread gives anything to another
    one."""
    chunks: tl.constexpr = tile.shape[1] // 64
    parts = tl.reshape(tile, (BN // (16 * WARPS), 2, WARPS, 8, chunks, 4, 4, 2, 2))
    return tl.reshape(tl.permute(parts, (0, 2, 1, 3, 4, 6, 7, 5, 8)), (BN, chunks * 64))


@triton.jit
def _output_of(r, N, GATED: tl.constexpr):
    """Return the row of the weight that row r of all tiles holds.

    GATED: the weight has N rows of gates, then N of values, and eight of each take turns.
    """
    if GATED:
        return tl.minimum(r // 16 * 8 + r % 8, N - 1) + r // 8 % 2 * N
    return tl.minimum(r, N - 1)


@triton.jit
def _gated(acc, BN: tl.constexpr, BM: tl.constexpr, IS_SILU: tl.constexpr, dtype: tl.constexpr):
    """Return act(gate) * value (BN / 2, BM) of a tile that `_output_of` arranged."""
    parts = tl.reshape(acc.to(dtype), (BN // 16, 2, 8, BM))
    gate, value = tl.split(tl.permute(parts, (0, 2, 3, 1)))
    acted = activated(gate.to(tl.float32), IS_SILU).to(dtype).to(tl.float32)
    return tl.reshape(acted * value.to(tl.float32), (BN // 2, BM))


@triton.jit
def _together(
    acc, partials, counters, number, piece, BN: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr
):
    """Return the sum of a tile's pieces, of which this program has one, and whether it came last:
    the others' sums are not whole. The order is always the same."""
    is_last = True
    if SPLITS > 1:
        own = partials + (number.to(tl.int64) * SPLITS) * (BN * BM)
        own += tl.arange(0, BN)[:, None] * BM + tl.arange(0, BM)[None, :]
        tl.store(own + piece * (BN * BM), acc)
        tl.debug_barrier()
        is_last = tl.atomic_add(counters + number, 1) == SPLITS - 1
        if is_last:
            tl.store(counters + number, 0)
            acc = tl.zeros((BN, BM), tl.float32)
            for some in tl.static_range(0, SPLITS, 4):  # are asked for before one is added
                pieces = ()
                for other in tl.static_range(some, min(some + 4, SPLITS)):
                    at_piece = own + other * (BN * BM)
                    pieces = pieces + (tl.load(at_piece, cache_modifier=".cg"),)
                for other in tl.static_range(len(pieces)):
                    acc += pieces[other]
    return acc, is_last


@triton.jit
def _shrink(
    lines, a0, a1, a2, shrunk, slots, active, partials, counters, number, first, piece, m, M, K,
    length, P: tl.constexpr, R: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    SPLITS: tl.constexpr, IS_EVEN: tl.constexpr, OVERLAPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Multiply rows by A's ranks as the outputs are: BN of those of all adapters in use, from
    `first` on, each adapter's P times R side by side. A row keeps its own adapter's.

    Rows without an adapter get zeros. The rows' adapters are read before earlier kernels end: the
    rows were grouped when the step began.
    """
    num = tl.load(active)
    if first < tl.maximum(num, 1) * (P * R):
        u = first + tl.arange(0, BN)
        adapter = u // (P * R)
        there = adapter < num
        slot = tl.load(active + 1 + adapter, mask=there, other=0).to(tl.int64)
        rows = rows_of_a(a0, a1, a2, slot, u, K, P, R)
        row_slots = tl.load(slots + m, mask=m < M, other=-1)
        acc = tl.zeros((BN, BM), tl.float32)
        k = tl.arange(0, BK)
        begin = piece * length
        after_earlier_kernels(OVERLAPS)
        for step in tl.range(0, length, BK, num_stages=STAGES):
            at_k = begin + step + k
            if IS_EVEN:
                weights = tl.load(rows[:, None] + at_k[None, :], mask=there[:, None], other=0.0)
                xs = tl.load(lines + at_k[:, None])
            else:
                inside = at_k < K
                mask = there[:, None] & inside[None, :]
                weights = tl.load(rows[:, None] + at_k[None, :], mask=mask, other=0.0)
                xs = tl.load(lines + at_k[:, None], mask=inside[:, None], other=0.0)
            acc = tl.dot(weights, xs, acc, input_precision="ieee")
        acc, is_last = _together(acc, partials, counters, number, piece, BN, BM, SPLITS)
        if is_last:
            has_none = row_slots == 0
            own = there[:, None] & (slot[:, None] == row_slots[None, :])
            own = own | ((adapter == 0)[:, None] & has_none[None, :])
            to = shrunk + m[None, :] * (P * R) + (u % (P * R))[:, None]
            tl.store(to, tl.where(has_none[None, :], 0.0, acc), mask=own)


@triton.jit(do_not_specialize=["M"])
def product_kernel(
    x, values, factors, table, bias, out, shrunk, slots, active, b0, b1, b2, start0, start1,
    start2, n0, n1, n2, a0, a1, a2, partials, counters, M, N, K, length, x_row, out_row, width,
    ranks,
    P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, G: tl.constexpr, BESIDE: tl.constexpr,
    SHRINKS: tl.constexpr, RANK: tl.constexpr, RANK_STAGES: tl.constexpr, KIND: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADDS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, WARPS: tl.constexpr, SPLITS: tl.constexpr, IS_EVEN: tl.constexpr,
    IN_REGISTERS: tl.constexpr, OVERLAPS: tl.constexpr, GATED: tl.constexpr, IS_SILU: tl.constexpr,
):  # fmt: skip
    """Compute BN outputs of BM rows from `length` of K inputs. Program (outputs, piece, rows).

    Tiles are (outputs, rows): weights are the first operand, which tensor cores take from
    registers. Pieces are added by the program that comes last, always in the same order.
    IS_EVEN: the pieces are K inputs together. GATED: half of the tile's outputs are gates, and
    N is the number of gated ones. P: modules whose adapters are added. BESIDE: the kernel just
    before writes `shrunk`, and let this one be launched once x could be read. SHRINKS: modules by
    whose A, of RANK, the first `ranks` programs multiply x; these write `shrunk`.
    """
    launch_next(OVERLAPS)
    column = tl.program_id(0) - ranks
    piece = tl.program_id(1)
    number = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)  # of the tile
    i = tl.arange(0, BN)
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    lines = x + tl.minimum(m, M - 1)[None, :] * x_row
    if SHRINKS > 0 and column < 0:
        _shrink(
            lines, a0, a1, a2, shrunk, slots, active, partials, counters, number,
            tl.program_id(0) * BN, piece, m, M, K, length, SHRINKS, RANK, BM, BN, BK, SPLITS,
            IS_EVEN, OVERLAPS, RANK_STAGES,
        )  # fmt: skip
        return
    n = _output_of(column * BN + i, N, GATED)
    kind: tl.constexpr = x.dtype.element_ty
    acc = tl.zeros((BN, BM), tl.float32)
    stored = N * 2 if GATED else N  # rows of the weight
    begin = piece * length
    if KIND == "int8" or KIND == "fp8":
        factor = tl.load(factors + n)
    if HAS_BIAS:
        added = tl.load(bias + n).to(tl.float32)
    if not BESIDE:
        after_earlier_kernels(OVERLAPS)
    if P > 0:  # asked for now, used when the sum is there
        r = column * BN + i
        own_n = r // 16 * 8 + r % 8 + r // 8 % 2 * N if GATED else r
        own_n = tl.max_contiguous(tl.multiple_of(own_n, 8), 8)
        num = tl.load(active)
        adapters, modules = some_weights(
            own_n, 0, num, active, b0, b1, b2, start0, start1, start2, n0, n1, n2, P, R, RC, G, BN
        )
    to = column * (BN // 2) + tl.arange(0, BN // 2) if GATED else column * BN + i
    mask = (to < N)[:, None] & (m < M)[None, :]
    at_out = out + m[None, :] * out_row + to[:, None]
    if ADDS:
        old = tl.load(at_out, mask=mask, other=0.0)
    if KIND == "plain":
        rows = values + n.to(tl.int64)[:, None] * width
        j = tl.arange(0, BK)
        for step in range(0, length, BK):
            first = begin + step
            if IS_EVEN:
                weights = tl.load(rows + first + j[None, :])
                xs = tl.load(lines + first + j[:, None])
            else:
                inside = first + j < K
                weights = tl.load(rows + first + j[None, :], mask=inside[None, :], other=0.0)
                xs = tl.load(lines + first + j[:, None], mask=inside[:, None], other=0.0)
            acc = tl.dot(weights, xs, acc, input_precision="ieee")
    elif KIND == "nf4":
        row = _output_of(column * BN + _row_of(i, WARPS), N, GATED).to(tl.int64)
        rows = values + row[:, None] * width + tl.arange(0, 64)[None, :]
        j = tl.arange(0, 128)
        scales = factors + row
        for step in range(0, length, BK):
            for inner in tl.static_range(0, BK, 128):
                first = begin + step + inner
                if IS_EVEN:
                    packed = tl.load(rows + first // 2)
                    xs = tl.load(lines + first + j[:, None])
                    scale = tl.load(scales + first // 64 * stored)
                    next_scale = tl.load(scales + (first // 64 + 1) * stored)
                else:
                    inside = i * 0 + first < K  # of every row: a mask is as large as what it masks
                    packed = tl.load(rows + first // 2, mask=inside[:, None], other=0)
                    xs = tl.load(lines + first + j[:, None], mask=first + j[:, None] < K, other=0.0)
                    scale = tl.load(scales + first // 64 * stored, mask=inside, other=0.0)
                    next_scale = tl.load(
                        scales + (first // 64 + 1) * stored, mask=inside, other=0.0
                    )
                upper, lower = scaled_entries(packed, scale, next_scale, table, kind, IN_REGISTERS)
                both = tl.reshape(tl.permute(tl.join(upper, lower), (0, 2, 1)), (BN, 128))
                acc = tl.dot(_fragment(both, BN, WARPS), xs, acc, input_precision="ieee")
    else:
        row = _output_of(column * BN + _row_of(i, WARPS), N, GATED)
        rows = values + row.to(tl.int64)[:, None] * width
        k = tl.arange(0, BK)
        for step in range(0, length, BK):  # a single product in it: conversions run beside others
            first = begin + step
            if IS_EVEN:
                tile = tl.load(rows + first + k[None, :])
                xs = tl.load(lines + first + k[:, None])
            else:
                tile = tl.load(
                    rows + first + k[None, :], mask=(first + k < width)[None, :], other=0.0
                )
                xs = tl.load(lines + first + k[:, None], mask=(first + k < K)[:, None], other=0.0)
            weights = _fragment(converted(tile, KIND, kind), BN, WARPS)
            acc = tl.dot(weights, xs, acc, input_precision="ieee")
    if BESIDE:
        after_earlier_kernels(OVERLAPS)
    acc, is_last = _together(acc, partials, counters, number, piece, BN, BM, SPLITS)
    if is_last:
        if KIND == "int8" or KIND == "fp8":
            acc = acc * factor[:, None]
        if KIND == "int8":
            acc = acc * 7.874015718698502e-3
        if HAS_BIAS:
            acc += added[:, None]
        if P > 0:
            if num > 0:
                acc = with_units(
                    acc, adapters, modules, 0, num, m, M, shrunk, slots, active, P, R, RC, G, BM
                )
            for unit in tl.range(G, num * ((R + RC - 1) // RC), G, num_stages=1):
                adapters, modules = some_weights(
                    own_n, unit, num, active, b0, b1, b2, start0, start1, start2, n0, n1, n2,
                    P, R, RC, G, BN,
                )  # fmt: skip
                acc = with_units(
                    acc, adapters, modules, unit, num, m, M, shrunk, slots, active, P, R, RC, G, BM
                )
        y = acc
        if GATED:
            y = _gated(acc, BN, BM, IS_SILU, kind)
        if ADDS:
            y += old.to(tl.float32)
        tl.store(at_out, y.to(kind), mask=mask)
