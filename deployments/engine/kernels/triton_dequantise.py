"""Read quantised weights, and dequantise them, with Triton. Imported only where it runs."""

import triton
import triton.language as tl

from deployments.engine.kernels.triton_nf4 import entries


@triton.jit
def converted(tile, KIND: tl.constexpr, dtype: tl.constexpr):
    if KIND == "fp8":  # to bfloat16 directly takes an instruction of a quarter of the rate
        return tile.to(tl.float16).to(tl.float32).to(dtype)
    return tile.to(dtype)


@triton.jit
def row_tile(values, n, first, width, WIDTH: tl.constexpr):
    """Return WIDTH elements, from `first` on, of the rows n of `width` each; zeros behind them."""
    j = first + tl.arange(0, WIDTH)
    at = n.to(tl.int64)[:, None] * width + j[None, :]
    return tl.load(values + at, mask=(j < width)[None, :], other=0.0)


@triton.jit
def _in_order(tile, BN: tl.constexpr, CHUNKS: tl.constexpr):
    """Put the inputs of rows (BN, CHUNKS * 64) into their natural order."""
    parts = tl.reshape(tile, (BN, CHUNKS, 4, 4, 2, 2))
    return tl.reshape(tl.permute(parts, (0, 1, 3, 4, 2, 5)), (BN, CHUNKS * 64))


@triton.jit
def dequantise_kernel(
    values, factors, table, out, N, K, width, factors_row, KIND: tl.constexpr, BN: tl.constexpr,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Write BN rows of CHUNKS times 64 stored elements. Program (chunks, rows)."""
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    first = tl.program_id(0) * (CHUNKS * 64)
    j = tl.arange(0, CHUNKS * 64)
    kind = out.dtype.element_ty
    nm = (n < N)[:, None]
    tile = row_tile(values, tl.minimum(n, N - 1), first, width, CHUNKS * 64)
    if KIND == "nf4":
        upper, lower = entries(tile, table, False)
        k = first * 2 + j // 64 * 128 + j % 64
        own = factors + (k // 64)[None, :] * factors_row + n[:, None]
        absmax = tl.load(own, mask=nm & (k < K)[None, :], other=0.0)
        natural = _in_order(upper, BN, CHUNKS).to(tl.float32) * absmax
        at = out + n.to(tl.int64)[:, None] * K + k[None, :]
        tl.store(at, natural.to(kind), mask=nm & (k < K)[None, :])
        inside = nm & (k + 64 < K)[None, :]
        absmax = tl.load(own + factors_row, mask=inside, other=0.0)
        natural = _in_order(lower, BN, CHUNKS).to(tl.float32) * absmax
        tl.store(at + 64, natural.to(kind), mask=inside)
    else:
        k = first + j
        weights = converted(_in_order(tile, BN, CHUNKS), KIND, tl.float32)
        weights = weights * tl.load(factors + n, mask=n < N, other=0.0)[:, None]
        if KIND == "int8":
            weights = weights * 7.874015718698502e-3
        at = out + n.to(tl.int64)[:, None] * K + k[None, :]
        tl.store(at, weights.to(kind), mask=nm & (k < K)[None, :])
