"""Multiply by quantised and plain weights, and add adapters to that, with Triton kernels.

Weight-only: x stays as it is, weights become its dtype in registers, sums are float32. A weight is
read once, so few rows take the time of its bytes. The order of its inputs is that of
quantised/interleaved.py. Imported only where Triton runs.
"""

import triton
import triton.language as tl

from deployments.engine.kernels.triton_dequantise import converted, row_tile
from deployments.engine.kernels.triton_expansion import row_weights, some_weights, with_units
from deployments.engine.kernels.triton_lora import activated
from deployments.engine.kernels.triton_nf4 import entries
from deployments.engine.kernels.triton_overlap import begin_beside, end_beside


@triton.jit
def _input_of(position):
    """Return the input that lies at a position of 64 (quantised/interleaved.py)."""
    return position // 4 % 4 * 16 + position // 2 % 2 * 8 + position // 16 * 2 + position % 2


@triton.jit
def _row_of(i, WARPS: tl.constexpr):
    """Return the output that row i of a tile holds, so that each thread loads its fragment's rows:
    a warp loads eight rows at a time, and multiplies two times eight neighbours."""
    two = 16 * WARPS
    return i // two * two + i // 8 % WARPS * 16 + i // (8 * WARPS) % 2 * 8 + i % 8


@triton.jit
def _fragment(tile, BN: tl.constexpr, WARPS: tl.constexpr):
    """Put rows and inputs (BN, 64) into their order. No thread gives anything to another one."""
    parts = tl.reshape(tile, (BN // (16 * WARPS), 2, WARPS, 8, 4, 4, 2, 2))
    return tl.reshape(tl.permute(parts, (0, 2, 1, 3, 5, 6, 4, 7)), (BN, 64))


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


@triton.jit(do_not_specialize=["M", "splits"])
def product_kernel(
    x, values, factors, table, bias, out, shrunk, slots, active, b0, b1, b2, start0, start1,
    start2, n0, n1, n2, partials, counters, M, N, K, length, splits, x_row, out_row, width,
    P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, G: tl.constexpr, BESIDE: tl.constexpr,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ADDS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, WARPS: tl.constexpr, IS_EVEN: tl.constexpr,
    IS_SPLIT: tl.constexpr, IN_REGISTERS: tl.constexpr, OVERLAPS: tl.constexpr,
    GATED: tl.constexpr, IS_SILU: tl.constexpr,
):  # fmt: skip
    """Compute BN outputs of BM rows from `length` of K inputs. Program (outputs, piece, rows).

    Tiles are (outputs, rows): weights are the first operand, which tensor cores take from
    registers. Pieces are added by the program that comes last, always in the same order.
    IS_EVEN: the pieces are K inputs together. GATED: half of the tile's outputs are gates, and
    N is the number of gated ones. P: modules whose adapters are added. BESIDE: `begin_beside`.
    """
    column = tl.program_id(0)
    piece = tl.program_id(1)
    i = tl.arange(0, BN)
    n = _output_of(column * BN + i, N, GATED)
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    lines = x + tl.minimum(m, M - 1)[None, :] * x_row
    kind: tl.constexpr = x.dtype.element_ty
    acc = tl.zeros((BN, BM), tl.float32)
    stored = N * 2 if GATED else N  # rows of the weight
    begin = piece * length
    k = tl.arange(0, 64)
    begin_beside(OVERLAPS, BESIDE)
    if P > 0:  # asked for now, used when the sum is there
        r = column * BN + i
        own_n = r // 16 * 8 + r % 8 + r // 8 % 2 * N if GATED else r
        own_n = tl.max_contiguous(tl.multiple_of(own_n, 8), 8)
        num = tl.load(active)
        adapters, modules = some_weights(
            own_n, 0, num, active, b0, b1, b2, start0, start1, start2, n0, n1, n2, P, R, RC, G, BN
        )
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
        row = _output_of(column * BN + _row_of(i, WARPS), N, GATED)
        rows = values + row.to(tl.int64)[:, None] * width + k[None, :]
        absmax = factors + n
        for step in range(0, length, BK):
            for inner in tl.static_range(0, BK, 128):
                first = begin + step + inner
                at = lines + first + k[:, None]
                if IS_EVEN:
                    upper, lower = entries(tl.load(rows + first // 2), table, IN_REGISTERS)
                    upper_x = tl.load(at)
                    lower_x = tl.load(at + 64)
                    scale = tl.load(absmax + first // 64 * stored)
                    next_scale = tl.load(absmax + (first // 64 + 1) * stored)
                else:
                    inside = first < K
                    packed = tl.load(rows + first // 2, mask=inside, other=0)
                    upper, lower = entries(packed, table, IN_REGISTERS)
                    upper_x = tl.load(at, mask=first + k[:, None] < K, other=0.0)
                    lower_x = tl.load(at + 64, mask=first + 64 + k[:, None] < K, other=0.0)
                    scale = tl.load(absmax + first // 64 * stored, mask=inside, other=0.0)
                    next_scale = tl.load(
                        absmax + (first // 64 + 1) * stored, mask=inside, other=0.0
                    )
                block = tl.dot(_fragment(upper, BN, WARPS), upper_x, input_precision="ieee")
                acc += block * scale[:, None]
                block = tl.dot(_fragment(lower, BN, WARPS), lower_x, input_precision="ieee")
                acc += block * next_scale[:, None]
    else:
        row = _output_of(column * BN + _row_of(i, WARPS), N, GATED)
        rows = values + row.to(tl.int64)[:, None] * width + k[None, :]
        for step in range(0, length, BK):
            for inner in tl.static_range(0, BK, 64):
                first = begin + step + inner
                if IS_EVEN:
                    tile = tl.load(rows + first)
                    xs = tl.load(lines + first + k[:, None])
                else:
                    tile = tl.load(rows + first, mask=first < K, other=0.0)
                    xs = tl.load(lines + first + k[:, None], mask=first + k[:, None] < K, other=0.0)
                weights = _fragment(converted(tile, KIND, kind), BN, WARPS)
                acc = tl.dot(weights, xs, acc, input_precision="ieee")
    end_beside(OVERLAPS, BESIDE)
    is_last = True
    if IS_SPLIT:
        tile_number = tl.program_id(2) * tl.num_programs(0) + column
        own = partials + (tile_number.to(tl.int64) * splits) * (BN * BM)
        own += i[:, None] * BM + tl.arange(0, BM)[None, :]
        tl.store(own + piece * (BN * BM), acc)
        tl.debug_barrier()
        is_last = tl.atomic_add(counters + tile_number, 1) == splits - 1
        if is_last:
            tl.store(counters + tile_number, 0)
            acc = tl.zeros((BN, BM), tl.float32)
            for other in range(splits):
                acc += tl.load(own + other * (BN * BM), cache_modifier=".cg")
    if is_last:
        if KIND == "int8" or KIND == "fp8":
            acc = acc * tl.load(factors + n)[:, None]
        if KIND == "int8":
            acc = acc * 7.874015718698502e-3
        if HAS_BIAS:
            acc += tl.load(bias + n).to(tl.float32)[:, None]
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
        if GATED:
            y = _gated(acc, BN, BM, IS_SILU, kind)
            to = column * (BN // 2) + tl.arange(0, BN // 2)
        else:
            y = acc
            to = column * BN + i
        mask = (to < N)[:, None] & (m < M)[None, :]
        at_out = out + m[None, :] * out_row + to[:, None]
        if ADDS:
            y += tl.load(at_out, mask=mask, other=0.0).to(tl.float32)
        tl.store(at_out, y.to(kind), mask=mask)


@triton.jit
def _pairs(x, pair, K):
    """Return inputs 2 * pair and the one behind each of them, in float32; zeros behind the last.

    Two of bfloat16 are read as one number of 32 bits.
    """
    inside = pair * 2 < K
    if x.dtype.element_ty == tl.bfloat16:
        both = tl.load(x.to(tl.pointer_type(tl.int32)) + pair, mask=inside, other=0)
        first = (both << 16).to(tl.float32, bitcast=True)
        second = (both & -65536).to(tl.float32, bitcast=True)
    else:
        first = tl.load(x + pair * 2, mask=inside, other=0.0)
        second = tl.load(x + pair * 2 + 1, mask=inside, other=0.0)
    return first, second


@triton.jit
def _times_pairs(weights, first, second, BN: tl.constexpr, BK: tl.constexpr):
    """Return the products of weights (BN, BK) with pairs of inputs, of each pair the sum."""
    even, odd = tl.split(tl.reshape(weights, (BN, BK // 2, 2)))
    return even.to(tl.float32) * first[None, :] + odd.to(tl.float32) * second[None, :]


@triton.jit
def row_kernel(
    x, values, factors, table, bias, out, shrunk, slots, active, b0, b1, b2, start0, start1,
    start2, n0, n1, n2, N, K, width, P: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    BESIDE: tl.constexpr, KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ADDS: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, IN_REGISTERS: tl.constexpr, OVERLAPS: tl.constexpr,
    GATED: tl.constexpr, IS_SILU: tl.constexpr,
):  # fmt: skip
    """Compute BN outputs of a single row, without tensor cores. Program (outputs).

    BK: elements of `values` that are read at once, which begins before earlier kernels end.
    GATED: each second of the BN outputs is a value, and the one before it its gate; N is the number
    of gated ones.
    """
    to = tl.program_id(0) * BN + tl.arange(0, BN)
    n = tl.minimum(to, N - 1)
    stored = N
    if GATED:
        n = tl.minimum(to // 2, N - 1) + to % 2 * N
        stored = N * 2
    tile = row_tile(values, n, 0, width, BK)
    if P > 0:
        slot = tl.load(slots).to(tl.int64)
        adapter, own = row_weights(
            n, slot, b0, b1, b2, start0, start1, start2, n0, n1, n2, P, R, RP
        )
    begin_beside(OVERLAPS, BESIDE)
    j = tl.arange(0, BK // 2)  # of pairs
    pair = _input_of(j % 32 * 2) // 2
    if KIND == "nf4":
        acc = tl.zeros((BN, BK // 64), tl.float32)
        pair += j // 32 * 64
        blocks = tl.arange(0, BK // 64) * 2
        for first in range(0, width, BK):
            upper, lower = entries(tile, table, IN_REGISTERS)
            tile = row_tile(values, n, first + BK, width, BK)
            own = factors + (first // 32 + blocks)[None, :] * stored + n[:, None]
            mask = (first + blocks * 32 < width)[None, :]
            left, right = _pairs(x, first + pair, K)
            products = tl.reshape(_times_pairs(upper, left, right, BN, BK), (BN, BK // 64, 32))
            acc += tl.sum(products, 2) * tl.load(own, mask=mask, other=0.0)
            left, right = _pairs(x, first + 32 + pair, K)
            products = tl.reshape(_times_pairs(lower, left, right, BN, BK), (BN, BK // 64, 32))
            acc += tl.sum(products, 2) * tl.load(own + stored, mask=mask, other=0.0)
    elif KIND == "plain":
        acc = tl.zeros((BN, BK), tl.float32)
        k = tl.arange(0, BK)
        for first in range(0, width, BK):
            weights = tile.to(tl.float32)
            tile = row_tile(values, n, first + BK, width, BK)
            xs = tl.load(x + first + k, mask=first + k < K, other=0.0).to(tl.float32)
            acc += weights * xs[None, :]
    else:
        acc = tl.zeros((BN, BK // 2), tl.float32)
        pair += j // 32 * 32
        for first in range(0, width, BK):
            weights = converted(tile, KIND, tl.float32)
            tile = row_tile(values, n, first + BK, width, BK)
            left, right = _pairs(x, first // 2 + pair, K)
            acc += _times_pairs(weights, left, right, BN, BK)
    y = tl.sum(acc, 1)
    if KIND == "int8" or KIND == "fp8":
        y = y * tl.load(factors + n)
    if KIND == "int8":
        y = y * 7.874015718698502e-3
    if HAS_BIAS:
        y += tl.load(bias + n).to(tl.float32)
    end_beside(OVERLAPS, BESIDE)
    if P > 0:
        at = shrunk + (own * R)[:, None] + tl.arange(0, RP)[None, :]
        s = tl.load(at, mask=(tl.arange(0, RP) < R)[None, :], other=0.0)
        y += tl.sum(adapter.to(tl.float32) * s, 1)
    kind: tl.constexpr = x.dtype.element_ty
    if GATED:
        gate, value = tl.split(tl.reshape(y.to(kind), (BN // 2, 2)))
        acted = activated(gate.to(tl.float32), IS_SILU).to(kind).to(tl.float32)
        y = acted * value.to(tl.float32)
        to = tl.program_id(0) * (BN // 2) + tl.arange(0, BN // 2)
    if ADDS:
        y += tl.load(out + to, mask=to < N, other=0.0).to(tl.float32)
    tl.store(out + to, y.to(kind), mask=to < N)
