"""What a step does with rows and tiles: bytes, LoRA's first half, products with its second half."""

from typing import Any, NamedTuple

from numba import carray, int64

from deployments.engine.cpu import layout as at
from deployments.engine.cpu.intrinsics import array_at
from deployments.engine.cpu.kernels import compiled, fetch, floats, gate, rms_norm
from deployments.engine.cpu.layout import GROUP, TILE
from deployments.engine.cpu.lora import expand, shrink
from deployments.engine.cpu.products import multiply, tile_at
from deployments.engine.cpu.tiles import group_to_bytes
from deployments.engine.lora.blocks import FIELDS, RANK, A, B


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
def _lora(s: Step, row: int, module: int, m: Any) -> Any:
    """Return the addresses of A and B and the rank that a row's adapter has for a module; zeros
    where it leaves the module alone, as the base model's slot 0 does."""
    line = field_of(s, row, at.SLOT) * s.shape[at.LORA_MODULES] + m[module, at.NUMBER]
    fields = carray(array_at(s.buffers[at.LORA] + 8 * FIELDS * line), (FIELDS,), int64)
    return fields[A], fields[B], fields[RANK]


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
def _shrunk_at(row: int, module: int, s: Step) -> int:
    line = row * at.MODULES + module
    return s.buffers[at.SHRUNK] + 4 * line * s.shape[at.LORA_RANK]


@compiled
def fetch_adapters(piece: int, pieces: int, first: int, last: int, s: Step, m: Any) -> None:
    """Ask for a share of what the rows' adapters have for the modules [first, last).

    They are cold in every step, and short: no processor sees them coming.
    """
    for row in range(piece, s.rows, pieces):
        slot = field_of(s, row, at.SLOT)
        other = row - 1 if slot != 0 else -1
        while other >= 0 and field_of(s, other, at.SLOT) != slot:
            other -= 1
        if slot != 0 and other < 0:  # the first row with this adapter
            for module in range(first, last):
                a, b, rank = _lora(s, row, module, m)
                fetch(a, 2 * rank * m[module, at.INPUTS])
                fetch(b, 2 * rank * m[module, at.OUTPUTS])


@compiled
def read_row(address: int, size: int, row: int, first: int, last: int, s: Step, m: Any) -> None:
    """Turn a row of inputs (size,) into bytes, and shrink it for the modules [first, last)."""
    to_bytes(address, size, row, s)
    if field_of(s, row, at.SLOT) == 0:
        return
    for module in range(first, last):
        a, _, rank = _lora(s, row, module, m)
        shrink(address, size, a, rank, _shrunk_at(row, module, s))


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
        count,
    )
    if f[at.BIAS] != 0:
        bias = floats(f[at.BIAS] + 4 * TILE * tile, TILE)
        for r in range(count):
            y = row_of(out, r, width, TILE)
            for i in range(TILE):
                y[i] += bias[i]


@compiled
def multiply_tiles(
    module: int, first: int, last: int, inputs: int, out: int, width: int, s: Step, m: Any
) -> None:
    """Write tiles [first, last) of a module's product, for all rows, bias and LoRA added.

    Args:
        inputs: the module's, padded.
        out, width: float32 (rows, width), where the module's columns begin.
    """
    for tile in range(first, last):
        for row in range(0, s.rows, at.ROW_BLOCK):
            place = out + 4 * (TILE * tile + row * width)
            count = min(at.ROW_BLOCK, s.rows - row)
            multiply_bytes(m[module], tile, inputs, place, width, row, count, s)
    expand_tiles(module, first, last, out, width, s, m)


@compiled
def expand_tiles(module: int, first: int, last: int, out: int, width: int, s: Step, m: Any) -> None:
    """Add each row's LoRA to tiles [first, last) of a module's outputs: long lines of B at once."""
    if first >= last:
        return
    for row in range(s.rows):
        if field_of(s, row, at.SLOT) != 0:
            _, b, rank = _lora(s, row, module, m)
            y, count = out + 4 * (row * width + TILE * first), TILE * (last - first)
            shrunk, size = _shrunk_at(row, module, s), m[module, at.OUTPUTS]
            expand(shrunk, rank, b, size, TILE * first, count, y)


@compiled
def scratch_of(thread: int, s: Step) -> int:
    """Return the address of a thread's own memory."""
    return s.buffers[at.SCRATCH] + 4 * thread * s.shape[at.SCRATCH_SIZE]


@compiled
def project_tiles(first: int, last: int, s: Step, m: Any) -> None:
    """Write tiles [first, last) of q, k and v, which lie side by side."""
    begin = 0
    for module in range(at.Q, at.O):
        count = s.shape[at.Q_WIDTH if module == at.Q else at.K_WIDTH] // TILE
        out = s.buffers[at.QKV] + 4 * TILE * begin
        own_first, own_last = max(first - begin, 0), min(last - begin, count)
        multiply_tiles(
            module, own_first, own_last, s.shape[at.STATE_WIDTH], out, s.shape[at.QKV_WIDTH], s, m
        )
        begin += count


@compiled
def add_tiles(
    module: int, first: int, last: int, inputs: int, thread: int, s: Step, m: Any
) -> None:
    """Add tiles [first, last) of a module's product to the states."""
    width, scratch = s.shape[at.STATE_WIDTH], scratch_of(thread, s)
    for tile in range(first, last):
        for row in range(0, s.rows, at.ROW_BLOCK):
            count = min(at.ROW_BLOCK, s.rows - row)
            multiply_bytes(m[module], tile, inputs, scratch, TILE, row, count, s)
            for r in range(count):
                y = row_of(scratch, r, TILE, TILE)
                x = row_of(s.buffers[at.STATES] + 4 * TILE * tile, row + r, width, TILE)
                for i in range(TILE):
                    x[i] += y[i]
    expand_tiles(module, first, last, s.buffers[at.STATES], width, s, m)


@compiled
def gate_tiles(first: int, last: int, s: Step, m: Any) -> None:
    """Write tiles [first, last) of silu(gate) * up."""
    inputs, width = s.shape[at.STATE_WIDTH], s.shape[at.INNER_WIDTH]
    gates, values = s.buffers[at.GATES], s.buffers[at.GATED]
    multiply_tiles(at.GATE, first, last, inputs, gates, width, s, m)
    multiply_tiles(at.UP, first, last, inputs, values, width, s, m)
    count = TILE * (last - first)
    for row in range(s.rows):
        at_row = 4 * (row * width + TILE * first)
        gate(floats(values + at_row, count), floats(gates + at_row, count))
