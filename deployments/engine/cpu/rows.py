"""What a step does with rows and tiles: bytes, LoRA's first half, products with its second half."""

from typing import Any, NamedTuple

from numba import carray, int64

from deployments.engine.cpu import layout as at
from deployments.engine.cpu.intrinsics import array_at
from deployments.engine.cpu.kernels import compiled, expand, floats, gate, rms_norm, shrink
from deployments.engine.cpu.layout import GROUP, TILE
from deployments.engine.cpu.products import multiply
from deployments.engine.cpu.tiles import group_to_bytes


class Step(NamedTuple):
    """Hold what all threads of a step know.

    shape, buffers: int64, as layout.py numbers them. sync: address, as phases.py says.
    """

    rows: int
    is_decode: bool  # no row reads what another one writes
    eps: float
    scale: float  # of the queries
    sync: int
    shape: Any
    buffers: Any


@compiled
def row_of(address: int, row: int, width: int, count: int) -> Any:
    """Return the first `count` of row `row` of a float32 table with `width` columns."""
    return floats(address + 4 * row * width, count)


@compiled
def field_of(s: Step, row: int, field: int) -> int:
    """Return a field of a row of the batch."""
    return carray(array_at(s.buffers[at.ROWS] + 8 * (row * at.ROW_FIELDS + field)), (1,), int64)[0]


@compiled
def _rank_of(s: Step, slot: int) -> int:
    return carray(array_at(s.buffers[at.RANKS] + 8 * slot), (1,), int64)[0]


@compiled
def to_bytes(address: int, size: int, row: int, s: Step) -> None:
    """Turn a row of inputs, zeros from `size` on, into bytes with one scale for each group."""
    out = s.buffers[at.BYTES] + row * s.shape[at.WIDEST]
    groups = 4 * row * s.shape[at.GROUPS]
    sums, scales = s.buffers[at.SUMS] + groups, s.buffers[at.ROW_SCALES] + groups
    for n in range((size + GROUP - 1) // GROUP):
        group_to_bytes(address + 4 * n * GROUP, out + n * GROUP, sums + 4 * n, scales + 4 * n)


@compiled
def read_row(address: int, size: int, row: int, first: int, last: int, s: Step, m: Any) -> None:
    """Turn a row of inputs (size,) into bytes, and shrink it for the modules [first, last)."""
    to_bytes(address, size, row, s)
    slot = field_of(s, row, at.SLOT)
    if slot == 0:
        return
    rank, stack_rank = _rank_of(s, slot), s.shape[at.STACK_RANK]
    for module in range(first, last):
        a = m[module, at.LORA_A]
        if a != 0:
            line = row * at.MODULES + module
            shrunk = row_of(s.buffers[at.SHRUNK], line, stack_rank, stack_rank)
            shrink(floats(address, size), size, a, slot, rank, stack_rank, shrunk)


@compiled
def norm_row(row: int, weight: int, first: int, last: int, s: Step, m: Any) -> None:
    """Do `read_row` with the norm of a row's states."""
    hidden, width = s.shape[at.HIDDEN], s.shape[at.STATE_WIDTH]
    normed = s.buffers[at.NORMED] + 4 * row * width
    states = row_of(s.buffers[at.STATES], row, width, hidden)
    rms_norm(states, floats(weight, hidden), floats(normed, width), hidden, s.eps)
    read_row(normed, hidden, row, first, last, s, m)


@compiled
def multiply_bytes(
    f: Any, tile: int, inputs: int, out: int, width: int, first: int, count: int, s: Step
) -> None:
    """Multiply rows [first, first + count) of the bytes by one tile, bias added.

    Args:
        f: the weight's addresses.
        inputs: the weight's, padded.
        out, width: float32 (count, width), where the tile's columns begin.
    """
    bytes_width, scales_row = s.shape[at.WIDEST], 4 * s.shape[at.GROUPS]
    multiply(
        f[at.WEIGHT] + tile * TILE * inputs,
        inputs,
        s.buffers[at.BYTES] + first * bytes_width,
        bytes_width,
        s.buffers[at.SUMS] + scales_row * first,
        s.buffers[at.ROW_SCALES] + scales_row * first,
        scales_row,
        f[at.SCALES] + 4 * TILE * tile,
        out,
        4 * width,
        count,
    )
    if f[at.BIAS] != 0:
        bias = floats(f[at.BIAS] + 4 * TILE * tile, TILE)
        for r in range(count):
            y = row_of(out, r, width, TILE)
            for i in range(TILE):
                y[i] += bias[i]


@compiled
def multiply_tile(
    module: int,
    tile: int,
    inputs: int,
    size: int,
    out: int,
    width: int,
    first: int,
    count: int,
    s: Step,
    m: Any,
) -> None:
    """Do `multiply_bytes` for a module of a layer with `size` outputs, and add each row's LoRA."""
    f = m[module]
    multiply_bytes(f, tile, inputs, out, width, first, count, s)
    if f[at.LORA_B] == 0:
        return
    stack_rank = s.shape[at.STACK_RANK]
    for r in range(count):
        slot = field_of(s, first + r, at.SLOT)
        if slot != 0:
            rank, line = _rank_of(s, slot), (first + r) * at.MODULES + module
            shrunk = row_of(s.buffers[at.SHRUNK], line, stack_rank, rank)
            y = row_of(out, r, width, TILE)
            expand(shrunk, rank, f[at.LORA_B], slot, stack_rank, size, tile * TILE, y)


@compiled
def scratch_of(thread: int, s: Step) -> int:
    """Return the address of a thread's own memory."""
    return s.buffers[at.SCRATCH] + 4 * thread * s.shape[at.SCRATCH_SIZE]


@compiled
def project_tile(tile: int, s: Step, m: Any) -> None:
    """Write one tile of q, k and v, side by side, for all rows."""
    q_tiles, k_tiles = s.shape[at.Q_WIDTH] // TILE, s.shape[at.K_WIDTH] // TILE
    module, own, heads = at.Q, tile, s.shape[at.HEADS]
    if tile >= q_tiles:
        module, own = at.K + (tile - q_tiles) // k_tiles, (tile - q_tiles) % k_tiles
        heads = s.shape[at.KV_HEADS]
    width, size = s.shape[at.QKV_WIDTH], heads * s.shape[at.HEAD_DIM]
    for first in range(0, s.rows, at.ROW_BLOCK):
        count = min(at.ROW_BLOCK, s.rows - first)
        out = s.buffers[at.QKV] + 4 * (TILE * tile + first * width)
        multiply_tile(module, own, s.shape[at.STATE_WIDTH], size, out, width, first, count, s, m)


@compiled
def add_tile(module: int, tile: int, inputs: int, thread: int, s: Step, m: Any) -> None:
    """Add one tile of a module's product to the states of all rows."""
    hidden, width = s.shape[at.HIDDEN], s.shape[at.STATE_WIDTH]
    scratch = scratch_of(thread, s)
    for first in range(0, s.rows, at.ROW_BLOCK):
        count = min(at.ROW_BLOCK, s.rows - first)
        multiply_tile(module, tile, inputs, hidden, scratch, TILE, first, count, s, m)
        for r in range(count):
            y = row_of(scratch, r, TILE, TILE)
            x = row_of(s.buffers[at.STATES] + 4 * TILE * tile, first + r, width, TILE)
            for i in range(TILE):
                x[i] += y[i]


@compiled
def gate_tile(tile: int, thread: int, s: Step, m: Any) -> None:
    """Write one tile of silu(gate) * up for all rows."""
    inputs, inner, width = s.shape[at.STATE_WIDTH], s.shape[at.INNER], s.shape[at.INNER_WIDTH]
    scratch = scratch_of(thread, s)
    for first in range(0, s.rows, at.ROW_BLOCK):
        count = min(at.ROW_BLOCK, s.rows - first)
        gated = s.buffers[at.GATED] + 4 * (first * width + TILE * tile)
        multiply_tile(at.GATE, tile, inputs, inner, scratch, TILE, first, count, s, m)
        multiply_tile(at.UP, tile, inputs, inner, gated, width, first, count, s, m)
        for r in range(count):
            gate(row_of(gated, r, width, TILE), row_of(scratch, r, TILE, TILE))
