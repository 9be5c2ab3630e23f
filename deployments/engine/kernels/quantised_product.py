"""Launch the kernels of triton_quantised.py, or torch for many rows: only where Triton runs."""

import functools

import torch
import triton

from deployments.engine.kernels.backend import launch_options, overlaps
from deployments.engine.kernels.quantised_tiles import tile_of
from deployments.engine.kernels.triton_quantised import (
    dequantise_kernel,
    product_kernel,
    row_kernel,
)
from deployments.engine.quantised.formats import NF4_CODE

_CHUNK = 1 << 25  # elements of a dequantised copy
_PREFETCH = 2  # how a product's weights are asked for while earlier kernels run
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
        values, factors: of a QuantisedWeight of this kind (quantised/weight.py), or kind plain: W
            itself twice, in the dtype of x.
    """
    rows, inputs = x.shape
    outputs = len(values)
    tile = tile_of(kind, rows, outputs, inputs)
    if tile is None and kind == "plain":
        return torch_product(x, values.t(), bias, residual)
    if tile is None:
        return _of_dequantised(x, values, factors, kind, bias=bias, residual=residual)
    out = residual
    if out is None:
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    tensors = (x, values, factors, _table(x.dtype, x.device), values if bias is None else bias, out)
    options = {
        "KIND": kind,
        "HAS_BIAS": bias is not None,
        "ADDS": residual is not None,
        "BN": tile.bn,
        "BK": tile.bk,
        "IN_REGISTERS": _is_in_registers(x),
        "num_warps": tile.num_warps,
        **launch_options(x.device),
    }
    if tile.bm == 0:
        row_kernel[(triton.cdiv(outputs, tile.bn),)](
            *tensors, outputs, inputs, OVERLAPS=overlaps(x.device), **options
        )
        return out
    grid = (triton.cdiv(outputs, tile.bn), tile.splits, triton.cdiv(rows, tile.bm))
    assert tile.splits == 1 or grid[0] * grid[2] <= _MOST_TILES, "more tiles than counters"
    partials = out
    if tile.splits > 1:
        partials = torch.empty(tile.splits, rows, outputs, dtype=torch.float32, device=x.device)
    product_kernel[grid](
        *tensors, partials, _counters(x.device), rows, outputs, inputs,
        triton.cdiv(inputs, tile.bk * tile.splits) * tile.bk, tile.splits, x.stride(0),
        out.stride(0), BM=tile.bm, IS_SPLIT=tile.splits > 1,
        OVERLAPS=_PREFETCH if overlaps(x.device) else 0, num_stages=tile.num_stages, **options,
    )  # fmt: skip
    return out


def torch_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Do `product` with torch, by a weight (in, out)."""
    if residual is not None:
        residual.addmm_(x, weight)
        return residual if bias is None else residual.add_(bias)
    if bias is not None:
        return torch.addmm(bias, x, weight, out=out)
    return torch.mm(x, weight, out=out)


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
        columns = out[:, part]
        own_bias = None if bias is None else bias[part]
        torch_product(x, weight, own_bias, None if residual is None else columns, columns)
    return out


def _is_in_registers(x: torch.Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16


@functools.cache
def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(NF4_CODE, dtype=dtype, device=device)


@functools.cache
def _counters(device: torch.device) -> torch.Tensor:
    return torch.zeros(_MOST_TILES, dtype=torch.int32, device=device)
