"""Launch the kernels of triton_quantised.py, or torch for many rows: only where Triton runs."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton

from deployments.engine.kernels.backend import counters, launch_options, overlaps, shared_bytes
from deployments.engine.kernels.ops import Expansion, gated_activation
from deployments.engine.kernels.quantised_tiles import (
    DEQUANTISED,
    Tile,
    stages_that_fit,
    tile_of,
)
from deployments.engine.kernels.triton_dequantise import dequantise_kernel
from deployments.engine.kernels.triton_grouped_lora import lora_expand_add, lora_expand_gated
from deployments.engine.kernels.triton_groups import three
from deployments.engine.kernels.triton_lora import MAX_NORM_COLUMNS
from deployments.engine.kernels.triton_quantised import product_kernel
from deployments.engine.kernels.triton_row import row_kernel
from deployments.engine.quantised.formats import NF4_CODE
from deployments.engine.quantised.interleaved import InterleavedWeight

_RANKS = 128  # of all adapters in use, that a program adds together
_MOST_TILES = 1 << 14  # of a product whose inputs are cut into pieces
_SHRUNK_RANKS = 4  # ranks of an adapter's A that one program multiplies a row by


@dataclass(frozen=True, slots=True)
class RowNorm:
    """Hold the RMS norm that a product of one row begins with, and what else multiplies its result.

    weight: (in,). stacks, slots: as triton_lora.norm_shrink takes them; none: nothing.
    """

    weight: torch.Tensor
    eps: float
    stacks: Sequence[torch.Tensor] = ()
    slots: torch.Tensor | None = None


def has_row_norm(x: torch.Tensor) -> bool:
    """Return whether a product of x (T, in) takes a RowNorm."""
    return len(x) == 1 and x.shape[1] <= MAX_NORM_COLUMNS


def product(
    x: torch.Tensor,
    weight: InterleavedWeight,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    expansion: Expansion | None = None,
) -> torch.Tensor:
    """Return y = x @ W.T + bias (T, out), or add it to `residual` (T, out) in place.

    x is (T, in), its rows contiguous; an expansion, whose rows are grouped, is added to y. With an
    activation of ops.GATED, return ops.gated_activation of y instead (T, out / 2). Products of one
    device run one after another: those whose inputs are cut into pieces share counters.
    """
    tile = tile_of(weight.kind, len(x), *weight.shape)
    if tile is None:
        return _ended(_of_dequantised(x, weight, bias, residual), activation, expansion)
    own = (x, weight.values, weight.factors)
    return _launched(weight.kind, tile, *own, bias, residual, activation, expansion)


def plain_product(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    expansion: Expansion | None = None,
) -> torch.Tensor:
    """Do `product` with a plain weight (out, in), in the dtype of x."""
    tile = tile_of("plain", len(x), *weight.shape)
    if tile is None:
        return _ended(torch_product(x, weight.t(), bias, residual), activation, expansion)
    return _launched("plain", tile, x, weight, weight, bias, residual, activation, expansion)


def _ended(y: torch.Tensor, activation: str | None, expansion: Expansion | None) -> torch.Tensor:
    """Do what the kernels do with a product before they store it."""
    if expansion is not None and activation is not None:
        return lora_expand_gated(y, expansion, activation)
    if expansion is not None:
        lora_expand_add(y, expansion)
    return y if activation is None else gated_activation(y, activation)


def row_product(
    x: torch.Tensor,
    weight: InterleavedWeight | torch.Tensor,
    norm: RowNorm,
    *,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Do `product` or `plain_product` with the RMS norm of a single row x (1, in).

    Returns:
        The product, and that of the norm with each stack's A (1, P, R), None without any.
    """
    kind = "plain" if isinstance(weight, torch.Tensor) else weight.kind
    own = (weight, weight) if isinstance(weight, torch.Tensor) else (weight.values, weight.factors)
    tile = tile_of(kind, 1, *weight.shape)
    assert tile is not None, "a single row has a tile"
    shrunk = None
    if norm.stacks:
        shape = (1, len(norm.stacks), norm.stacks[0].shape[1])
        shrunk = torch.empty(shape, dtype=torch.float32, device=x.device)
    return _launched(kind, tile, x, *own, bias, None, activation, None, norm, shrunk), shrunk


def _launched(
    kind: str,
    tile: Tile,
    x: torch.Tensor,
    values: torch.Tensor,
    factors: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    activation: str | None,
    expansion: Expansion | None = None,
    norm: RowNorm | None = None,
    shrunk: torch.Tensor | None = None,
) -> torch.Tensor:
    rows, inputs = x.shape
    stored, width = values.shape
    outputs = stored if activation is None else stored // 2
    out = residual
    if out is None:
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    adapters, sizes = _adapter_arguments(x, expansion)
    added = values if bias is None else bias
    own = (x, values, factors, _table(x.dtype, x.device), added, out, *adapters)
    options = {
        **sizes,
        "KIND": kind,
        "HAS_BIAS": bias is not None,
        "ADDS": residual is not None,
        "GATED": activation is not None,
        "IS_SILU": activation == "silu",
        "BN": tile.bn,
        "BK": tile.bk,
        "IN_REGISTERS": _is_in_registers(x),
        "OVERLAPS": overlaps(x.device),
        "num_warps": tile.num_warps,
        **launch_options(x.device),
    }
    columns = triton.cdiv(stored, tile.bn)
    if tile.bm == 0:
        _launch_row(columns, own, (outputs, inputs, width), norm, shrunk, tile, options)
        return out
    blocks = triton.cdiv(rows, tile.bm)
    length = triton.cdiv(inputs, tile.bk * tile.splits) * tile.bk
    partials = out
    if tile.splits > 1:
        assert columns * blocks <= _MOST_TILES, "more tiles than counters"
        size = columns * blocks * tile.splits * tile.bn * tile.bm
        partials = torch.empty(size, dtype=torch.float32, device=x.device)
    ranks = min(_RANKS, max(8, triton.next_power_of_2(sizes["R"])))
    product_kernel[(columns, tile.splits, blocks)](
        *own, partials, counters("product", _MOST_TILES, x.device), rows, outputs, inputs, length,
        x.stride(0), out.stride(0), width, BM=tile.bm, WARPS=tile.num_warps, SPLITS=tile.splits,
        IS_EVEN=length * tile.splits == inputs, RC=ranks, G=_RANKS // ranks,
        num_stages=stages_that_fit(tile, kind, x.element_size(), shared_bytes(x.device)), **options,
    )  # fmt: skip
    return out


def _launch_row(
    columns: int,
    own: tuple[Any, ...],
    sizes: tuple[int, int, int],
    norm: RowNorm | None,
    shrunk: torch.Tensor | None,
    tile: Tile,
    options: dict[str, Any],
) -> None:
    x, (_, inputs, width) = own[0], sizes
    tiles = triton.cdiv(width, tile.bk)
    stacks, rank, programs = [x], 0, 0
    if norm is not None and norm.stacks:
        assert norm.slots is not None, "adapters without slots"
        own = (*own[:6], shrunk, norm.slots, *own[8:])
        stacks, rank = list(norm.stacks), norm.stacks[0].shape[1]
        programs = len(stacks) * (rank // _SHRUNK_RANKS)
    row_kernel[(columns + programs,)](
        *own, x if norm is None else norm.weight, 0.0 if norm is None else norm.eps,
        *three(stacks), *sizes, columns, RP=triton.next_power_of_2(options["R"]),
        HAS_NORM=norm is not None, RANK=rank, RC=_SHRUNK_RANKS,
        BLOCK=triton.next_power_of_2(inputs), TILES=tiles, AHEAD=min(tile.num_stages, tiles),
        **options,
    )  # fmt: skip


def _adapter_arguments(
    x: torch.Tensor, expansion: Expansion | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a kernel needs to add the expansion."""
    if expansion is None:
        return (x,) * 6 + (0,) * 6, {"P": 0, "R": 8, "BESIDE": False}
    assert expansion.groups is not None, "rows that are not grouped"
    stacks = [b for _, b in expansion.stacks]
    starts, columns = [start for start, _ in expansion.stacks], [b.shape[2] for b in stacks]
    tensors = (expansion.shrunk, expansion.slots, expansion.groups.active, *three(stacks))
    sizes = {"P": len(stacks), "R": expansion.rank, "BESIDE": expansion.is_beside}
    return (*tensors, *three(starts), *three(columns)), sizes


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


def dequantise(weight: InterleavedWeight, rows: slice, dtype: torch.dtype) -> torch.Tensor:
    """Return these rows of W, rounded to a dtype."""
    values = weight.values[rows]
    is_nf4 = weight.kind == "nf4"
    factors = weight.factors[:, rows] if is_nf4 else weight.factors[rows]
    outputs, inputs = len(values), weight.shape[1]
    out = torch.empty(outputs, inputs, dtype=dtype, device=values.device)
    width = values.shape[1]
    dequantise_kernel[(triton.cdiv(width, 256), triton.cdiv(outputs, 8))](
        values, factors, _table(torch.float32, out.device), out, outputs, inputs, width,
        factors.stride(0), KIND=weight.kind, BN=8, CHUNKS=4,
    )  # fmt: skip
    return out


def _of_dequantised(
    x: torch.Tensor,
    weight: InterleavedWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """Do `product` with torch, for one part of the outputs after the other."""
    outputs, inputs = weight.shape
    out = residual
    if out is None:
        out = torch.empty(len(x), outputs, dtype=x.dtype, device=x.device)
    step = max(1, DEQUANTISED // inputs)
    for first in range(0, outputs, step):
        part = slice(first, first + step)
        copy = dequantise(weight, part, x.dtype).t()
        columns, own_bias = out[:, part], None if bias is None else bias[part]
        torch_product(x, copy, own_bias, None if residual is None else columns, columns)
    return out


def _is_in_registers(x: torch.Tensor) -> bool:
    return x.is_cuda and x.dtype == torch.bfloat16


@functools.cache
def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(NF4_CODE, dtype=dtype, device=device)
