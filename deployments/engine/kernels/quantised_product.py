"""Launch the kernels of triton_quantised.py, or torch for many rows: only where Triton runs."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton

from deployments.engine.kernels.backend import counters, launch_options, overlaps, shared_bytes
from deployments.engine.kernels.ops import Expansion, Shrink, gated_activation
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
_PIECE_STEP = 128  # inputs of a piece are a multiple of it, whatever the tile
# Of an adapter's A that one program multiplies a row by: ranks, and inputs that it holds at once.
_SHRUNK_RANKS, _SHRUNK_INPUTS = 4, 4096


def has_row_norm(x: torch.Tensor) -> bool:
    """Return whether `product_with_shrink` takes a norm of x (T, in) first."""
    return len(x) == 1 and x.shape[1] <= MAX_NORM_COLUMNS


def takes_shrink(x: torch.Tensor, weight: InterleavedWeight | torch.Tensor) -> bool:
    """Return whether `product_with_shrink` takes x (T, in): a kernel of ours multiplies so many
    rows."""
    outputs, inputs = weight.shape
    return tile_of(_kind(weight), len(x), outputs, inputs) is not None


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


def product_with_shrink(
    x: torch.Tensor,
    weight: InterleavedWeight | torch.Tensor,
    shrink: Shrink | None,
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Do `product` or `plain_product`, and multiply x by each row's own A in the same launch.

    x is such that `takes_shrink`, or a single row. norm: the weight (in,) and epsilon of an RMS
    norm of x, which `has_row_norm`; it is taken first.

    Returns:
        The product, and that with each stack's A (T, P, R), None without any.
    """
    kind = _kind(weight)
    own = (weight, weight) if isinstance(weight, torch.Tensor) else (weight.values, weight.factors)
    # The slot that a new version goes to while rows still have the old one is not counted.
    ranks = 0 if shrink is None else shrink.ranks * min(len(x), len(shrink.stacks[0]) - 2)
    outputs, inputs = weight.shape
    tile = tile_of(kind, len(x), outputs, inputs, more=ranks)
    assert tile is not None, "rows that torch multiplies"
    shrunk = None
    if shrink is not None:
        shape = (len(x), len(shrink.stacks), shrink.rank)
        shrunk = torch.empty(shape, dtype=torch.float32, device=x.device)
    more: dict[str, Any] = {"norm": norm, "shrink": shrink, "shrunk": shrunk}
    return _launched(kind, tile, x, *own, bias, residual, activation, **more), shrunk


def _kind(weight: InterleavedWeight | torch.Tensor) -> str:
    return "plain" if isinstance(weight, torch.Tensor) else weight.kind


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
    norm: tuple[torch.Tensor, float] | None = None,
    shrink: Shrink | None = None,
    shrunk: torch.Tensor | None = None,
) -> torch.Tensor:
    rows, inputs = x.shape
    stored, width = values.shape
    outputs = stored if activation is None else stored // 2
    out = residual
    if out is None:
        out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    adapters, sizes = _adapter_arguments(x, expansion)
    stacks = [x]
    if shrink is not None:
        assert expansion is None, "a product adds adapters or takes their first half along"
        adapters = (shrunk, shrink.slots, shrink.active, *adapters[3:])
        stacks = list(shrink.stacks)
    added = values if bias is None else bias
    own = (x, values, factors, _table(x.dtype, x.device), added, out, *adapters)
    options = {
        **sizes,
        "RANK": 0 if shrink is None else shrink.rank,
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
        _launch_row(columns, own, (outputs, inputs, width), norm, stacks, tile, options)
        return out
    first = 0  # programs of ranks
    if shrink is not None:
        first = triton.cdiv(shrink.ranks * (len(shrink.active) - 1), tile.bn)
    every, blocks = first + columns, triton.cdiv(rows, tile.bm)
    step = tile.bk if tile.splits == 1 else max(tile.bk, _PIECE_STEP)
    length = triton.cdiv(inputs, step * tile.splits) * step
    partials = out
    if tile.splits > 1:
        assert every * blocks <= _MOST_TILES, "more tiles than counters"
        size = every * blocks * tile.splits * tile.bn * tile.bm
        partials = torch.empty(size, dtype=torch.float32, device=x.device)
    shared, size = shared_bytes(x.device), x.element_size()
    stages = stages_that_fit(tile, kind, size, shared)
    ranks = min(_RANKS, max(8, triton.next_power_of_2(sizes["R"])))
    product_kernel[(every, tile.splits, blocks)](
        *own, *three(stacks), partials, counters("product", _MOST_TILES, x.device), rows, outputs,
        inputs, length, x.stride(0), out.stride(0), width, first, BM=tile.bm, WARPS=tile.num_warps,
        SPLITS=tile.splits, IS_EVEN=length * tile.splits == inputs, RC=ranks, G=_RANKS // ranks,
        SHRINKS=0 if shrink is None else len(stacks), num_stages=stages,
        RANK_STAGES=min(stages, stages_that_fit(tile, "plain", size, shared)), **options,
    )  # fmt: skip
    return out


def _launch_row(
    columns: int,
    own: tuple[Any, ...],
    sizes: tuple[int, int, int],
    norm: tuple[torch.Tensor, float] | None,
    stacks: Sequence[torch.Tensor],
    tile: Tile,
    options: dict[str, Any],
) -> None:
    x, (_, inputs, width) = own[0], sizes
    tiles = triton.cdiv(width, tile.bk)
    block = min(_SHRUNK_INPUTS, triton.next_power_of_2(inputs))
    blocks = triton.cdiv(inputs, block)
    together = _SHRUNK_RANKS if blocks == 1 else 1
    programs = len(stacks) * (options["RANK"] // together)  # none without ranks
    row_kernel[(columns + programs,)](
        *own, *(norm or (x, 0.0)), *three(stacks), *sizes, columns,
        RP=triton.next_power_of_2(options["R"]), HAS_NORM=norm is not None, RC=together,
        BLOCK=block, BLOCKS=blocks, TILES=tiles, AHEAD=min(tile.num_stages, tiles), **options,
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
