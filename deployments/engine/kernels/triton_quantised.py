"""Multiply by quantised weights, and dequantise them, with Triton kernels.

Weight-only: x stays as it is, weights become its dtype in registers, sums are float32. A weight is
read once, so few rows take the time of its bytes. Imported only where Triton runs.
"""

import functools

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.backend import launch_options, overlaps
from deployments.engine.kernels.quantised_tiles import tile_of
from deployments.engine.quantised.formats import NF4_CODE

MAX_ROWS = 256  # more are bound by arithmetic: cuBLAS, from a dequantised copy
_CHUNK = 1 << 25  # elements of such a copy
_MOST_TILES = 1 << 14  # of a product whose inputs are cut into pieces


def _lookup_assembly() -> str:
    """Return PTX that turns four bytes into eight NF4 codes in bfloat16, four and four.

    `prmt` picks bytes by four selectors of three bits: from entries 0-7 and from 8-15, then, by
    each code's upper bit, from the two results; the lower and the upper byte of the entries apart.
    """
    halves = torch.tensor(NF4_CODE).bfloat16().view(torch.int16).tolist()
    lower = [half & 0xFF for half in halves]
    upper = [half >> 8 & 0xFF for half in halves]

    def word(table: list[int], first: int) -> str:
        return f"0x{int.from_bytes(bytes(table[first : first + 4]), 'little'):08x}"

    lines = [
        "{ .reg .b32 s, t, p, q, l0, l1, h0, h1;",
        "and.b32 s, $4, 0x77777777;",
        "shr.u32 t, $4, 1;",
        "and.b32 t, t, 0x44444444;",
        "or.b32 t, t, 0x32103210;",
    ]
    for half in "01":
        for name, table in (("l", lower), ("h", upper)):
            lines += [
                f"prmt.b32 p, {word(table, 0)}, {word(table, 4)}, s;",
                f"prmt.b32 q, {word(table, 8)}, {word(table, 12)}, s;",
                f"prmt.b32 {name}{half}, p, q, t;",
            ]
        if half == "0":
            lines += ["shr.u32 s, s, 16;", "shr.u32 t, t, 16;"]
    lines += [
        "prmt.b32 $0, l0, h0, 0x7351;",  # the upper halves of the bytes
        "prmt.b32 $1, l1, h1, 0x7351;",
        "prmt.b32 $2, l0, h0, 0x6240;",
        "prmt.b32 $3, l1, h1, 0x6240; }",
    ]
    return "\n".join(lines)


_LOOKUP: tl.constexpr = tl.constexpr(_lookup_assembly())


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
    if MODE == 2:
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


@triton.jit(do_not_specialize=["M"])
def _product_kernel(
    x, values, factors, table, bias, out, partials, counters, M, N, K, x_row, out_row,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, ADDS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr, IN_REGISTERS: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Compute BN outputs of BM rows from one of SPLITS pieces of K. Program (outputs, piece, rows).

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
    length = tl.cdiv(K, BK * SPLITS) * BK
    begin = piece * length
    end = tl.minimum(begin + length, K)
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        if KIND == "nf4":
            _prefetch(values, n, N, begin // 2, end // 2, K // 2, OVERLAPS - 1)
        else:
            size: tl.constexpr = values.dtype.element_ty.primitive_bitwidth // 8
            _prefetch(values, n, N, begin * size, end * size, K * size, OVERLAPS - 1)
        tl.extra.cuda.gdc_wait()
    if KIND == "nf4":
        b = tl.arange(0, 32)
        for first in range(begin, end, 64):
            at = n.to(tl.int64)[:, None] * (K // 2) + first // 2 + b[None, :]
            packed = tl.load(values + at, mask=nm[:, None], other=0)
            upper, lower = _codes(packed, table, IN_REGISTERS)
            x_at = x + m[None, :] * x_row + first + b[:, None]
            x_upper = tl.load(x_at, mask=mm[None, :], other=0.0)
            x_lower = tl.load(x_at + 32, mask=mm[None, :], other=0.0)
            block = tl.dot(upper, x_upper, input_precision="ieee")
            block = tl.dot(lower, x_lower, block, input_precision="ieee")
            absmax = tl.load(factors + first // 64 * N + n, mask=nm, other=0.0)
            acc += block * absmax[:, None]
    else:
        k = tl.arange(0, BK)
        for first in range(begin, end, BK):
            km = first + k < K
            at = n.to(tl.int64)[:, None] * K + first + k[None, :]
            weights = tl.load(values + at, mask=nm[:, None] & km[None, :], other=0.0)
            x_at = x + m[None, :] * x_row + first + k[:, None]
            xs = tl.load(x_at, mask=mm[None, :] & km[:, None], other=0.0)
            acc = tl.dot(weights.to(kind), xs, acc, input_precision="ieee")
    mask = nm[:, None] & mm[None, :]
    is_last = True
    if SPLITS > 1:
        own = partials + (m[None, :] * N + n[:, None])
        tl.store(own + piece * (M * N), acc, mask=mask)
        tl.debug_barrier()
        counter = counters + tl.program_id(2) * tl.num_programs(0) + column
        is_last = tl.atomic_add(counter, 1) == SPLITS - 1
        if is_last:
            tl.store(counter, 0)
            acc = tl.zeros((BN, BM), tl.float32)
            for other in range(SPLITS):
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
def _dequantise_kernel(
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


def product(
    x: torch.Tensor,
    values: torch.Tensor,
    factors: torch.Tensor,
    kind: str,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return x @ W.T + bias (T, out), or add it to `residual` (T, out) in place and return that.

    Products of one device run one after another: those whose inputs are cut into pieces share
    counters.

    Args:
        x: (T, in), its rows contiguous.
        values, factors: of a QuantisedWeight of this kind (quantised/weight.py).
    """
    rows, inputs = x.shape
    outputs = len(values)
    if rows > MAX_ROWS:
        return _of_dequantised(x, values, factors, kind, bias=bias, residual=residual)
    out = residual
    if out is None:
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    tile = tile_of(kind, rows, outputs, inputs)
    grid = (triton.cdiv(outputs, tile.bn), tile.splits, triton.cdiv(rows, tile.bm))
    assert tile.splits == 1 or grid[0] * grid[2] <= _MOST_TILES, "more tiles than counters"
    partials = out
    if tile.splits > 1:
        partials = torch.empty(tile.splits, rows, outputs, dtype=torch.float32, device=x.device)
    _product_kernel[grid](
        x, values, factors, _table(x.dtype, x.device), factors if bias is None else bias, out,
        partials, _counters(x.device), rows, outputs, inputs, x.stride(0), out.stride(0),
        KIND=kind, HAS_BIAS=bias is not None, ADDS=residual is not None, BM=tile.bm, BN=tile.bn,
        BK=tile.bk, SPLITS=tile.splits, IN_REGISTERS=_is_in_registers(x),
        OVERLAPS=2 if overlaps(x.device) else 0, num_warps=tile.num_warps,
        num_stages=tile.num_stages, **launch_options(x.device),
    )  # fmt: skip
    return out


def dequantise(
    values: torch.Tensor, factors: torch.Tensor, kind: str, out: torch.Tensor
) -> torch.Tensor:
    """Write W to `out` (out, in), rounded once; NF4's entries are rounded to bfloat16 first."""
    rows, columns = out.shape
    grid = (triton.cdiv(columns, 512), triton.cdiv(rows, 8))
    _dequantise_kernel[grid](
        values, factors, _table(out.dtype, out.device), out, rows, columns,
        KIND=kind, BN=8, BK=512, IN_REGISTERS=_is_in_registers(out),
    )  # fmt: skip
    return out


def _of_dequantised(
    x: torch.Tensor,
    values: torch.Tensor,
    factors: torch.Tensor,
    kind: str,
    *,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """Do `product` with torch, for one part of the outputs after the other."""
    rows, inputs = x.shape
    outputs = len(values)
    out = residual
    if out is None:
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    step = max(1, _CHUNK // inputs)
    for first in range(0, outputs, step):
        part = slice(first, first + step)
        own = factors[:, part].contiguous() if kind == "nf4" else factors[part]
        copy = torch.empty(len(values[part]), inputs, dtype=x.dtype, device=x.device)
        weight = dequantise(values[part], own, kind, copy).t()
        if residual is not None:
            out[:, part].addmm_(x, weight)
        elif bias is not None:
            torch.addmm(bias[part], x, weight, out=out[:, part])
        else:
            torch.mm(x, weight, out=out[:, part])
    if residual is not None and bias is not None:
        out.add_(bias)
    return out


def _is_in_registers(x: torch.Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16


@functools.cache
def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(NF4_CODE, dtype=dtype, device=device)


@functools.cache
def _counters(device: torch.device) -> torch.Tensor:
    return torch.zeros(_MOST_TILES, dtype=torch.int32, device=device)
