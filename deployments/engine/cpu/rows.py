"""What a step does with rows and tiles: bytes and LoRA of rows, products of tiles."""

from typing import Any

from numba import int64

from deployments.engine.cpu import layout as at
from deployments.engine.cpu.adapters import adapter_of, ask, is_adapted
from deployments.engine.cpu.kernels import compiled, floats, gate, rms_norm, zero
from deployments.engine.cpu.layout import GROUP, TILE, Step
from deployments.engine.cpu.lora import expand, shrink
from deployments.engine.cpu.products import multiply, tile_at
from deployments.engine.cpu.tiles import group_to_bytes


@compiled
def row_of(address: int, row: int, width: int, count: int) -> Any:
    """Return the first `count` of row `row` of a float32 table with `width` columns."""
    return floats(address + 4 * row * width, count)


@compiled
def to_bytes(address: int, size: int, row: int, s: Step) -> None:
    """Turn a row of inputs, zeros from `size` on, into bytes with one scale for each group."""
    out = s.buffers[at.BYTES] + row * s.shape[at.WIDEST]
    groups = 4 * row * s.shape[at.GROUPS]
    sums, scales = s.buffers[at.SUMS] + groups, s.buffers[at.ROW_SCALES] + groups
    halves = s.buffers[at.HALF_SUMS] + 2 * groups
    for n in range((size + GROUP - 1) // GROUP):
        group_to_bytes(
            address + 4 * n * GROUP, out + n * GROUP, sums + 4 * n, scales + 4 * n, halves + 8 * n
        )


@compiled
def _output(module: int, row: int, s: Step) -> int:
    """Return the address of a row of a module's outputs."""
    if module == at.O or module == at.DOWN:
        return s.buffers[at.STATES] + 4 * row * s.shape[at.STATE_WIDTH]
    if module == at.GATE or module == at.UP:
        buffer = at.GATES if module == at.GATE else at.GATED
        return s.buffers[buffer] + 4 * row * s.shape[at.INNER_WIDTH]
    column = 0 if module == at.Q else s.shape[at.Q_WIDTH] + (module - at.K) * s.shape[at.K_WIDTH]
    return s.buffers[at.QKV] + 4 * (row * s.shape[at.QKV_WIDTH] + column)


@compiled
def read_row(address: int, size: int, row: int, first: int, last: int, s: Step, m: Any) -> None:
    """Turn a row of inputs (size,) into bytes, and begin its outputs of the modules [first, last)
    with its adapter's part, to which the products are added."""
    to_bytes(address, size, row, s)
    shrunk = s.buffers[at.SHRUNK] + 4 * row * s.shape[at.LORA_RANK]
    for module in range(first, last):
        if is_adapted(s, module, m):
            a, b, rank = adapter_of(s, row, module, m)
            out, count = _output(module, row, s), m[module, at.OUTPUTS]
            if module != at.O and module != at.DOWN:  # those are added to the states
                zero(floats(out, count))
            if rank > 0:
                shrink(address, size, a, rank, shrunk)
                expand(shrunk, rank, b, count, out)


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
    f: Any,
    tile: int,
    inputs: int,
    out: int,
    width: int,
    is_added: bool,
    first: int,
    count: int,
    rows: int,
    s: Step,
) -> None:
    """Multiply rows [first, first + count) of the bytes by one tile, bias added.

    Args:
        f: the weight's addresses.
        inputs: the weight's, padded.
        out, width: float32 (count, width), where the tile's columns begin.
        is_added: whether what is there is added.
        rows: that the tile is multiplied by in all, one block after the other.
    """
    bytes_width, scales_row = s.shape[at.WIDEST], 4 * s.shape[at.GROUPS]
    multiply(
        tile_at(f[at.WEIGHT], f[at.BITS], inputs, tile),
        f[at.BITS],
        inputs,
        s.buffers[at.BYTES] + first * bytes_width,
        bytes_width,
        s.buffers[at.SUMS] + scales_row * first,
        s.buffers[at.ROW_SCALES] + scales_row * first,
        s.buffers[at.HALF_SUMS] + 2 * scales_row * first,
        scales_row,
        out,
        4 * width,
        int64(is_added),
        count,
        rows - first - count,
    )
    if f[at.BIAS] != 0:
        bias = floats(f[at.BIAS] + 4 * TILE * tile, TILE)
        for r in range(count):
            y = row_of(out, r, width, TILE)
            for i in range(TILE):
                y[i] += bias[i]


@compiled
def multiply_tiles(
    module: int,
    first: int,
    last: int,
    inputs: int,
    out: int,
    width: int,
    thread: int,
    s: Step,
    m: Any,
) -> None:
    """Write tiles [first, last) of a module's product, for all rows, bias added. It is added to
    what `read_row` wrote, and to the states where they are the output.

    Args:
        inputs: the module's, padded.
        out, width: float32 (rows, width), where the module's columns begin.
    """
    is_added = module == at.O or module == at.DOWN or is_adapted(s, module, m)
    for tile in range(first, last):
        ask(thread, s, m)
        for row in range(0, s.rows, at.ROW_BLOCK):
            place = out + 4 * (TILE * tile + row * width)
            count = min(at.ROW_BLOCK, s.rows - row)
            multiply_bytes(m[module], tile, inputs, place, width, is_added, row, count, s.rows, s)


@compiled
def scratch_of(thread: int, s: Step) -> int:
    """Return the address of a thread's own memory."""
    return s.buffers[at.SCRATCH] + 4 * thread * s.shape[at.SCRATCH_SIZE]


@compiled
def project_tiles(first: int, last: int, thread: int, s: Step, m: Any) -> None:
    """Write tiles [first, last) of q, k and v, which lie side by side."""
    begin, inputs, width = 0, s.shape[at.STATE_WIDTH], s.shape[at.QKV_WIDTH]
    for module in range(at.Q, at.O):
        count = s.shape[at.Q_WIDTH if module == at.Q else at.K_WIDTH] // TILE
        out = s.buffers[at.QKV] + 4 * TILE * begin
        own_first, own_last = max(first - begin, 0), min(last - begin, count)
        multiply_tiles(module, own_first, own_last, inputs, out, width, thread, s, m)
        begin += count


@compiled
def add_tiles(
    module: int, first: int, last: int, inputs: int, thread: int, s: Step, m: Any
) -> None:
    """Add tiles [first, last) of a module's product to the states."""
    states, width = s.buffers[at.STATES], s.shape[at.STATE_WIDTH]
    multiply_tiles(module, first, last, inputs, states, width, thread, s, m)


@compiled
def gate_tiles(first: int, last: int, thread: int, s: Step, m: Any) -> None:
    """Write tiles [first, last) of silu(gate) * up."""
    inputs, width = s.shape[at.STATE_WIDTH], s.shape[at.INNER_WIDTH]
    gates, values = s.buffers[at.GATES], s.buffers[at.GATED]
    multiply_tiles(at.GATE, first, last, inputs, gates, width, thread, s, m)
    multiply_tiles(at.UP, first, last, inputs, values, width, thread, s, m)
    count = TILE * (last - first)
    for row in range(s.rows):
        at_row = 4 * (row * width + TILE * first)
        gate(floats(values + at_row, count), floats(gates + at_row, count))
