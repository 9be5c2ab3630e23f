"""Multiply by a weight in one order of sums for any number of rows.

cuBLAS and torch's reductions choose by shape how they split a sum, so a row's result depends on the
rows beside it. Here each output is the sum of the same parts in the same order, whatever else is in
the batch. Imported only where Triton runs.
"""

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.backend import counters

# Measured on an H100 (docs/engine.md).
_BLOCK_M = 64  # rows of one instruction on Hopper: a smaller tile would sum in another order
_BLOCK_K = 128
_FEW_OUTPUTS = 4096  # have narrow tiles, so that there are enough of them
_PROGRAMS = 256
_SHORTEST_PART = 2048
_ROWS_IN_PARALLEL = 256  # up to so many rows, the parts of a sum have programs of their own
_MOST_TILES = 1 << 16


@triton.jit
def _part(
    x, weight, rows, columns, row_mask, column_mask, first, last, x_row, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Return the sum over inputs [first, last) of a tile, whose loop is the same everywhere."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(first, last, BLOCK_K):
        k = begin + tl.arange(0, BLOCK_K)
        x_mask = row_mask[:, None]
        w_mask = column_mask[:, None]
        if not EVEN_K:
            x_mask = x_mask & (k < K)[None, :]
            w_mask = w_mask & (k < K)[None, :]
        xs = tl.load(x + rows[:, None] * x_row + k[None, :], mask=x_mask, other=0.0)
        ws = tl.load(weight + columns[:, None] * K + k[None, :], mask=w_mask, other=0.0)
        acc = tl.dot(xs, tl.trans(ws), acc, input_precision="ieee")
    return acc


@triton.jit
def _linear_kernel(
    x, weight, bias, out, partial, arrived, M, N, K, x_row, out_row,
    PARTS: tl.constexpr, TOGETHER: tl.constexpr, HAS_BIAS: tl.constexpr, ADD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    """Compute a tile of x @ weight.T. Program (rows, columns, part of the sum).

    A sum is PARTS sums over ranges of inputs, added in their order: by one program (TOGETHER), or
    by the program of a tile that comes last.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = rows < M
    column_mask = columns < N
    rows = rows.to(tl.int64)
    length = tl.cdiv(tl.cdiv(K, PARTS), BLOCK_K) * BLOCK_K
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if TOGETHER:
        for part in range(0, PARTS):
            acc += _part(
                x, weight, rows, columns.to(tl.int64), row_mask, column_mask, part * length,
                tl.minimum(K, (part + 1) * length), x_row, K, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
            )  # fmt: skip
    else:
        own = tl.program_id(2)
        mine = _part(
            x, weight, rows, columns.to(tl.int64), row_mask, column_mask, own * length,
            tl.minimum(K, (own + 1) * length), x_row, K, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K,
        )  # fmt: skip
        tile = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        inner = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        parts = partial + tile.to(tl.int64) * (PARTS * BLOCK_M * BLOCK_N) + inner
        mask = row_mask[:, None] & (column_mask[None, :])
        tl.store(parts + own * (BLOCK_M * BLOCK_N), mine, mask=mask, cache_modifier=".cg")
        tl.debug_barrier()  # all of the tile is written before it counts as arrived
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") != PARTS - 1:
            return
        tl.store(arrived + tile, 0)
        for part in tl.static_range(0, PARTS):
            acc += tl.load(
                parts + part * (BLOCK_M * BLOCK_N), mask=mask, other=0.0, cache_modifier=".cg"
            )
    if HAS_BIAS:
        acc += tl.load(bias + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    at = out + rows[:, None] * out_row + columns[None, :]
    mask = row_mask[:, None] & column_mask[None, :]
    if ADD:
        acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, acc.to(out.dtype.element_ty), mask=mask)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    add_to: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return x @ weight.T + bias (M, N), each row as if it were alone.

    Args:
        x: (M, K), rows of contiguous numbers.
        weight: (N, K), contiguous.
        bias: (N,)
        add_to: (M, N): the result is added to it in place.
    """
    (rows, inputs), outputs = x.shape, len(weight)
    out = x.new_empty(rows, outputs) if add_to is None else add_to
    width, parts = tiling(outputs, inputs)
    tiles = triton.cdiv(rows, _BLOCK_M), triton.cdiv(outputs, width)
    together = parts == 1 or rows > _ROWS_IN_PARALLEL
    partial, arrived = out, out
    if not together:
        shape = (tiles[0] * tiles[1], parts, _BLOCK_M, width)
        partial = torch.empty(shape, dtype=torch.float32, device=x.device)
        arrived = counters("linear", _MOST_TILES, x.device)
    _linear_kernel[(*tiles, 1 if together else parts)](
        x, weight, out if bias is None else bias, out, partial, arrived, rows, outputs, inputs,
        x.stride(0), out.stride(0),
        PARTS=parts, TOGETHER=together, HAS_BIAS=bias is not None, ADD=add_to is not None,
        BLOCK_M=_BLOCK_M, BLOCK_N=width, BLOCK_K=_BLOCK_K, EVEN_K=inputs % _BLOCK_K == 0,
        num_warps=4, num_stages=4 if x.element_size() == 2 else 2,
    )  # fmt: skip
    return out


def tiling(outputs: int, inputs: int) -> tuple[int, int]:
    """Return the outputs of a tile, and into how many parts the sum over the inputs is cut: by the
    weight's shape alone."""
    width, parts = 32 if outputs <= _FEW_OUTPUTS else 64, 1
    tiles = -(-outputs // width)
    while tiles * 2 * parts <= _PROGRAMS and inputs // (2 * parts) >= _SHORTEST_PART:
        parts *= 2
    return width, parts
