"""Launch the kernels of triton_quantised.py, or torch for many rows: only where Triton runs."""

import functools

import torch
import triton

from deployments.engine.kernels.backend import launch_options, overlaps
from deployments.engine.kernels.quantised_tiles import tile_of
from deployments.engine.kernels.triton_quantised import dequantise_kernel, product_kernel
from deployments.engine.quantised.formats import NF4_CODE

MAX_ROWS = 256  # more are bound by arithmetic: cuBLAS, from a dequantised copy
_CHUNK = 1 << 25  # elements of such a copy
_MOST_TILES = 1 << 14  # of a product whose inputs are cut into pieces


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
    length = triton.cdiv(inputs, tile.bk * tile.splits) * tile.bk
    partials = out
    if tile.splits > 1:
        partials = torch.empty(tile.splits, rows, outputs, dtype=torch.float32, device=x.device)
    product_kernel[grid](
        x, values, factors, _table(x.dtype, x.device), factors if bias is None else bias, out,
        partials, _counters(x.device), rows, outputs, inputs, length, tile.splits,
        x.stride(0), out.stride(0),
        KIND=kind, HAS_BIAS=bias is not None, ADDS=residual is not None, BM=tile.bm, BN=tile.bn,
        BK=tile.bk, IS_SPLIT=tile.splits > 1, IN_REGISTERS=_is_in_registers(x),
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
    dequantise_kernel[grid](
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
