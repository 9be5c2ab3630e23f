"""Multiply by quantised weights, and dequantise them, with Triton kernels.

Weight-only: x stays as it is, weights become its dtype in registers, sums are float32. A weight is
read once, so few rows take the time of its bytes. Imported only where Triton runs.
"""

import triton
import triton.language as tl

from deployments.engine.kernels.nf4_lookup import lookup_assembly
from deployments.engine.kernels.triton_overlap import after_earlier_kernels

_LOOKUP: tl.constexpr = tl.constexpr(lookup_assembly())


@triton.jit
def _codes(packed, table, IN_REGISTERS: tl.constexpr):
    """Return the two NF4 entries of each byte, in the dtype of the table."""
    if IN_REGISTERS:
        first, second = tl.inline_asm_elementwise(
            _LOOKUP, "=r,=r,=r,=r,r", [packed], (tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        index = packed.to(tl.int32)
        first = tl.load(table + (index >> 4))
        second = tl.load(table + (index & 15))
    return first, second


@triton.jit
def _prefetch(values, n, N, begin, end, row_bytes, MODE: tl.constexpr):
    """Ask for bytes [begin, end) of the rows n, so that they are in the second-level cache."""
    rows = values.to(tl.pointer_type(tl.int8)) + tl.minimum(n, N - 1).to(tl.int64) * row_bytes
    if MODE == 1:
        for first in range(begin, end, 8 * 128):
            b = tl.minimum(first + tl.arange(0, 8) * 128, end - 1)
            at = (rows[:, None] + b[None, :]).to(tl.int64)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
                "=r,l",
                [at],
                tl.int32,
                is_pure=False,
                pack=1,
            )
    if MODE == 2 and end > begin:
        quarter = (end - begin) // 4
        at = rows[:, None] + begin + tl.arange(0, 4)[None, :] * quarter
        tl.inline_asm_elementwise(
            "cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;",
            "=r,l,r",
            [at.to(tl.int64), quarter],
            tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit(do_not_specialize=["M", "splits"])
def product_kernel(
    x, values, factors, table, bias, out, partials, counters, M, N, K, length, splits, x_row,
    out_row,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ADDS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, IS_SPLIT: tl.constexpr, IN_REGISTERS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Compute BN outputs of BM rows from `length` of K inputs. Program (outputs, piece, rows).

    Tiles are (outputs, rows): weights are the first operand, so that they go from registers to the
    tensor cores. Pieces are added by the program that comes last, always in the same order.
    """
    column = tl.program_id(0)
    piece = tl.program_id(1)
    n = column * BN + tl.arange(0, BN)
    nm = n < N
    m = tl.program_id(2) * BM + tl.arange(0, BM)
    mm = m < M
    kind = x.dtype.element_ty
    acc = tl.zeros((BN, BM), tl.float32)
    begin = piece * length
    if OVERLAPS:
        end = tl.maximum(tl.minimum(begin + length, K), begin)
        tl.extra.cuda.gdc_launch_dependents()
        if KIND == "nf4":
            _prefetch(values, n, N, begin // 2, end // 2, K // 2, OVERLAPS - 1)
        else:
            size: tl.constexpr = values.dtype.element_ty.primitive_bitwidth // 8
            _prefetch(values, n, N, begin * size, end * size, K * size, OVERLAPS - 1)
        tl.extra.cuda.gdc_wait()
    if KIND == "nf4":
        b = tl.arange(0, 32)
        for step in range(0, length, BK):
            for inner in tl.static_range(0, BK, 64):
                first = begin + step + inner
                at = n.to(tl.int64)[:, None] * (K // 2) + first // 2 + b[None, :]
                packed = tl.load(values + at, mask=(nm & (first < K))[:, None], other=0)
                upper, lower = _codes(packed, table, IN_REGISTERS)
                x_at = x + m[None, :] * x_row + first + b[:, None]
                xm = (mm & (first < K))[None, :]
                x_upper = tl.load(x_at, mask=xm, other=0.0)
                x_lower = tl.load(x_at + 32, mask=xm, other=0.0)
                block = tl.dot(upper, x_upper, input_precision="ieee")
                block = tl.dot(lower, x_lower, block, input_precision="ieee")
                own = factors + first // 64 * N + n
                acc += block * tl.load(own, mask=nm & (first < K), other=0.0)[:, None]
    else:
        k = tl.arange(0, BK)
        for step in range(0, length, BK):
            first = begin + step
            km = first + k < K
            at = n.to(tl.int64)[:, None] * K + first + k[None, :]
            weights = tl.load(values + at, mask=nm[:, None] & km[None, :], other=0.0)
            x_at = x + m[None, :] * x_row + first + k[:, None]
            xs = tl.load(x_at, mask=mm[None, :] & km[:, None], other=0.0)
            acc = tl.dot(weights.to(kind), xs, acc, input_precision="ieee")
    mask = nm[:, None] & mm[None, :]
    is_last = True
    if IS_SPLIT:
        own = partials + (m[None, :] * N + n[:, None])
        tl.store(own + piece * (M * N), acc, mask=mask)
        tl.debug_barrier()
        counter = counters + tl.program_id(2) * tl.num_programs(0) + column
        is_last = tl.atomic_add(counter, 1) == splits - 1
        if is_last:
            tl.store(counter, 0)
            acc = tl.zeros((BN, BM), tl.float32)
            for other in range(splits):
                acc += tl.load(own + other * (M * N), mask=mask, other=0.0, cache_modifier=".cg")
    if is_last:
        if KIND == "int8" or KIND == "fp8":
            acc = acc * tl.load(factors + n, mask=nm, other=0.0)[:, None]
        if KIND == "int8":
            acc = acc * 7.874015718698502e-3
        if HAS_BIAS:
            acc += tl.load(bias + n, mask=nm, other=0.0).to(tl.float32)[:, None]
        at_out = out + m[None, :] * out_row + n[:, None]
        if ADDS:
            acc += tl.load(at_out, mask=mask, other=0.0).to(tl.float32)
        tl.store(at_out, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _row_tile(values, n, N, first, width, WIDTH: tl.constexpr):
    """Return WIDTH elements, from `first` on, of the rows n of `width` each; zeros behind them."""
    j = first + tl.arange(0, WIDTH)
    at = n.to(tl.int64)[:, None] * width + j[None, :]
    return tl.load(values + at, mask=(n < N)[:, None] & (j < width)[None, :], other=0.0)


@triton.jit
def row_kernel(
    x, values, factors, table, bias, out, N, K, KIND: tl.constexpr, HAS_BIAS: tl.constexpr,
    ADDS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, IN_REGISTERS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Compute BN outputs of a single row, without tensor cores. Program (outputs)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    nm = n < N
    per: tl.constexpr = 2 if KIND == "nf4" else 1  # inputs in one element
    tile = _row_tile(values, n, N, 0, K // per, BK // per)
    after_earlier_kernels(OVERLAPS)
    if KIND == "nf4":
        acc = tl.zeros((BN, BK // 64), tl.float32)
        b = tl.arange(0, BK // 2)
        k = b // 32 * 64 + b % 32
        blocks = tl.arange(0, BK // 64)
        for first in range(0, K, BK):
            upper, lower = _codes(tile, table, IN_REGISTERS)
            tile = _row_tile(values, n, N, (first + BK) // per, K // per, BK // per)
            km = first + k < K
            x_upper = tl.load(x + first + k, mask=km, other=0.0).to(tl.float32)
            x_lower = tl.load(x + first + k + 32, mask=km, other=0.0).to(tl.float32)
            products = upper.to(tl.float32) * x_upper[None, :]
            products += lower.to(tl.float32) * x_lower[None, :]
            sums = tl.sum(tl.reshape(products, (BN, BK // 64, 32)), 2)
            own = factors + (first // 64 + blocks)[None, :] * N + n[:, None]
            bm = nm[:, None] & (first + blocks * 64 < K)[None, :]
            acc += sums * tl.load(own, mask=bm, other=0.0)
    else:
        acc = tl.zeros((BN, BK), tl.float32)
        k = tl.arange(0, BK)
        for first in range(0, K, BK):
            weights = tile.to(tl.float32)
            tile = _row_tile(values, n, N, (first + BK) // per, K // per, BK // per)
            xs = tl.load(x + first + k, mask=first + k < K, other=0.0).to(tl.float32)
            acc += weights * xs[None, :]
    y = tl.sum(acc, 1)
    if KIND == "int8" or KIND == "fp8":
        y = y * tl.load(factors + n, mask=nm, other=0.0)
    if KIND == "int8":
        y = y * 7.874015718698502e-3
    if HAS_BIAS:
        y += tl.load(bias + n, mask=nm, other=0.0).to(tl.float32)
    if ADDS:
        y += tl.load(out + n, mask=nm, other=0.0).to(tl.float32)
    tl.store(out + n, y.to(out.dtype.element_ty), mask=nm)


@triton.jit
def dequantise_kernel(
    values, factors, table, out, N, K, KIND: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
):  # fmt: skip
    """Write BN rows of BK inputs. Program (inputs, rows)."""
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(0) * BK
    line = out + n.to(tl.int64)[:, None] * K + first
    kind = out.dtype.element_ty
    nm = n[:, None] < N
    if KIND == "nf4":
        b = tl.arange(0, BK // 2)
        k = b // 32 * 64 + b % 32
        mask = nm & (first + k < K)[None, :]
        at = n.to(tl.int64)[:, None] * (K // 2) + first // 2 + b[None, :]
        upper, lower = _codes(tl.load(values + at, mask=mask, other=0), table, IN_REGISTERS)
        block = first // 64 + b // 32
        absmax = tl.load(factors + block[None, :] * N + n[:, None], mask=mask, other=0.0)
        tl.store(line + k[None, :], (upper.to(tl.float32) * absmax).to(kind), mask=mask)
        tl.store(line + k[None, :] + 32, (lower.to(tl.float32) * absmax).to(kind), mask=mask)
    else:
        k = tl.arange(0, BK)
        mask = nm & (first + k < K)[None, :]
        at = n.to(tl.int64)[:, None] * K + first + k[None, :]
        weights = tl.load(values + at, mask=mask, other=0.0).to(tl.float32)
        weights = weights * tl.load(factors + n, mask=n < N, other=0.0)[:, None]
        if KIND == "int8":
            weights = weights * 7.874015718698502e-3
        tl.store(line + k[None, :], weights.to(kind), mask=mask)
