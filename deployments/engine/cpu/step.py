"""One step of a Llama-style model on a CPU, compiled: all layers, on any number of threads.

Every thread runs the same function. A layer is nine phases; a phase is cut into pieces, a thread
takes a piece that nobody took yet, and goes on to the next phase when all pieces are done. So a
thread that comes late delays nobody.
"""

from typing import Any

from numba import carray, float32, int16, int64

from deployments.engine.cpu import layout as at
from deployments.engine.cpu.intrinsics import (
    array_at,
    atomic_add,
    atomic_load,
    to_bfloat16,
    yield_core,
)
from deployments.engine.cpu.kernels import (
    cached,
    compiled,
    expand,
    floats,
    gate,
    rms_norm,
    rotate,
    shrink,
    softmax,
)
from deployments.engine.cpu.layout import GROUP, TILE
from deployments.engine.cpu.products import multiply
from deployments.engine.cpu.tiles import group_to_bytes, mixing_tile, prefetch

_SPINS = 2000  # turns before a thread that waits offers its core to others

_KEYS_1, _KEYS_2, _KEYS_3, _KEYS_4 = (mixing_tile(rows, 1, 4) for rows in (1, 2, 3, 4))
_ONE_1, _ONE_2, _ONE_3, _ONE_4 = (mixing_tile(rows, 1, 1) for rows in (1, 2, 3, 4))
_FOUR_1, _FOUR_2, _FOUR_3, _FOUR_4 = (mixing_tile(rows, 4, 1) for rows in (1, 2, 3, 4))


# --- phases ---


@compiled
def _take(sync: int, phase: int) -> int:
    """Return the number of a piece that no other thread took."""
    return atomic_add(sync + 16 * phase, int64(1))


@compiled
def _finish(sync: int, phase: int) -> None:
    atomic_add(sync + 16 * phase + 8, int64(1))


@compiled
def _wait(sync: int, phase: int, pieces: int) -> None:
    turns = 0
    while atomic_load(sync + 16 * phase + 8) < pieces:
        turns += 1
        if turns > _SPINS:
            yield_core()


# --- pieces ---


@compiled
def _row(address: int, row: int, width: int, count: int) -> Any:
    """Return the first `count` of row `row` of a float32 table with `width` columns."""
    return floats(address + 4 * row * width, count)


@compiled
def _to_bytes(x: Any, size: int, row: int, shape: Any, b: Any) -> None:
    """Turn a row of inputs, zeros from `size` on, into bytes with one scale for each group."""
    out = b[at.BYTES] + row * shape[at.WIDEST]
    groups = 4 * row * shape[at.GROUPS]
    for n in range((size + GROUP - 1) // GROUP):
        at_group = groups + 4 * n
        group_to_bytes(
            x + 4 * n * GROUP, out + n * GROUP, b[at.SUMS] + at_group, b[at.ROW_SCALES] + at_group
        )


@compiled
def _read_row(
    address: int, size: int, row: int, first: int, last: int, shape: Any, b: Any, m: Any
) -> None:
    """Turn a row of inputs (size,) into bytes, and shrink it for the modules [first, last)."""
    _to_bytes(address, size, row, shape, b)
    slot = _of_row(b, row, at.SLOT)
    if slot == 0:
        return
    x = floats(address, size)
    rank = carray(array_at(b[at.RANKS] + 8 * slot), (1,), int64)[0]
    stack_rank = shape[at.STACK_RANK]
    for module in range(first, last):
        a = m[module, at.LORA_A]
        if a != 0:
            shrunk = _row(b[at.SHRUNK], row * at.MODULES + module, stack_rank, stack_rank)
            shrink(x, size, a, slot, rank, stack_rank, shrunk)


@compiled
def _of_row(b: Any, row: int, field: int) -> int:
    """Return a field of a row of the batch."""
    return carray(array_at(b[at.ROWS] + 8 * (row * at.ROW_FIELDS + field)), (1,), int64)[0]


@compiled
def _multiply_tile(
    module: int,
    tile: int,
    inputs: int,
    size: int,
    out: int,
    width: int,
    first: int,
    count: int,
    shape: Any,
    b: Any,
    m: Any,
) -> None:
    """Multiply rows [first, first + count) by one tile of a module, bias and LoRA added.

    Args:
        inputs, size: the module's padded inputs, its outputs.
        out, width: float32 (count, width), where the tile's columns begin.
    """
    f = m[module]
    bytes_width, scales_row = shape[at.WIDEST], 4 * shape[at.GROUPS]
    multiply(
        f[at.WEIGHT] + tile * TILE * inputs,
        inputs,
        b[at.BYTES] + first * bytes_width,
        bytes_width,
        b[at.SUMS] + scales_row * first,
        b[at.ROW_SCALES] + scales_row * first,
        scales_row,
        f[at.SCALES] + 4 * TILE * tile,
        out,
        4 * width,
        count,
    )
    if f[at.BIAS] != 0:
        bias = floats(f[at.BIAS] + 4 * TILE * tile, TILE)
        for r in range(count):
            y = _row(out, r, width, TILE)
            for i in range(TILE):
                y[i] += bias[i]
    if f[at.LORA_B] == 0:
        return
    stack_rank = shape[at.STACK_RANK]
    for r in range(count):
        slot = _of_row(b, first + r, at.SLOT)
        if slot != 0:
            rank = carray(array_at(b[at.RANKS] + 8 * slot), (1,), int64)[0]
            shrunk = _row(b[at.SHRUNK], (first + r) * at.MODULES + module, stack_rank, rank)
            y = _row(out, r, width, TILE)
            expand(shrunk, rank, f[at.LORA_B], slot, stack_rank, size, tile * TILE, y)


@compiled
def _add_tile(
    module: int, tile: int, inputs: int, thread: int, rows: int, shape: Any, b: Any, m: Any
) -> None:
    """Add one tile of a module's product to the states of all rows."""
    hidden = shape[at.HIDDEN]
    width = shape[at.STATE_WIDTH]
    scratch = b[at.SCRATCH] + 4 * thread * shape[at.SCRATCH_SIZE]
    for first in range(0, rows, at.ROW_BLOCK):
        count = min(at.ROW_BLOCK, rows - first)
        _multiply_tile(module, tile, inputs, hidden, scratch, TILE, first, count, shape, b, m)
        for r in range(count):
            y = _row(scratch, r, TILE, TILE)
            x = _row(b[at.STATES] + 4 * TILE * tile, first + r, width, TILE)
            for i in range(TILE):
                x[i] += y[i]


@compiled
def _gate_tile(tile: int, thread: int, rows: int, shape: Any, b: Any, m: Any) -> None:
    """Write one tile of silu(gate) * up for all rows."""
    inputs, inner, width = shape[at.STATE_WIDTH], shape[at.INNER], shape[at.INNER_WIDTH]
    scratch = b[at.SCRATCH] + 4 * thread * shape[at.SCRATCH_SIZE]
    for first in range(0, rows, at.ROW_BLOCK):
        count = min(at.ROW_BLOCK, rows - first)
        gated = b[at.GATED] + 4 * (first * width + TILE * tile)
        _multiply_tile(at.GATE, tile, inputs, inner, scratch, TILE, first, count, shape, b, m)
        _multiply_tile(at.UP, tile, inputs, inner, gated, width, first, count, shape, b, m)
        for r in range(count):
            gate(_row(gated, r, width, TILE), _row(scratch, r, TILE, TILE))


# --- attention ---


@compiled
def _block(layer: int, kv_heads: int, head_dim: int, position: int, head: int) -> int:
    """Return where a block of 16 positions keeps a head's keys (D, 16), then its values (16, D)."""
    number = (position >> 4) * kv_heads + head
    return layer + number * 4 * at.LANES * head_dim


@compiled
def _write_keys(row: int, head: int, scale: float, kv: int, shape: Any, b: Any) -> None:
    """Apply RoPE to a row's queries of one key/value head and its key; cache key and value."""
    kv_heads, dim = shape[at.KV_HEADS], shape[at.HEAD_DIM]
    group = shape[at.HEADS] // kv_heads
    width, q_width, k_width = shape[at.QKV_WIDTH], shape[at.Q_WIDTH], shape[at.K_WIDTH]
    position, start = _of_row(b, row, at.POSITION), _of_row(b, row, at.START)
    cos, sin = _row(b[at.COS], position, dim, dim), _row(b[at.SIN], position, dim, dim)
    line = b[at.QKV] + 4 * row * width
    for query in range(head * group, (head + 1) * group):
        rotate(floats(line + 4 * query * dim, dim), cos, sin, dim, scale)
    key = floats(line + 4 * (q_width + head * dim), dim)
    value = floats(line + 4 * (q_width + k_width + head * dim), dim)
    rotate(key, cos, sin, dim, float32(1.0))
    place = start + position
    lane = place & 15
    block = _block(kv, kv_heads, dim, place, head)
    keys = carray(array_at(block), (dim * at.LANES,), int16)
    values = carray(array_at(block + 2 * at.LANES * dim + 2 * lane * dim), (dim,), int16)
    for i in range(dim):
        keys[i * at.LANES + lane] = to_bfloat16(key[i])
        values[i] = to_bfloat16(value[i])


@compiled
def _score(rows: int, keys: int, dim: int, q: int, scores: int, span: int) -> None:
    """Add the products of queries (rows, dim), at most four, and 16 keys to scores (rows, span)."""
    line, row = 2 * at.LANES, 4 * dim
    if rows == 4:
        _KEYS_4(keys, line, dim, q, row, 4, scores, 4 * span)
    elif rows == 3:
        _KEYS_3(keys, line, dim, q, row, 4, scores, 4 * span)
    elif rows == 2:
        _KEYS_2(keys, line, dim, q, row, 4, scores, 4 * span)
    else:
        _KEYS_1(keys, line, dim, q, row, 4, scores, 4 * span)


@compiled
def _weigh(rows: int, values: int, dim: int, count: int, weights: int, span: int, out: int) -> None:
    """Add `count` values (count, dim), each times its weight (rows, span), to out (rows, dim)."""
    d, line = 0, 2 * dim
    while d < dim:
        w, y = values + 2 * d, out + 4 * d
        if dim - d >= 64:
            if rows == 4:
                _FOUR_4(w, line, count, weights, 4 * span, 4, y, 4 * dim)
            elif rows == 3:
                _FOUR_3(w, line, count, weights, 4 * span, 4, y, 4 * dim)
            elif rows == 2:
                _FOUR_2(w, line, count, weights, 4 * span, 4, y, 4 * dim)
            else:
                _FOUR_1(w, line, count, weights, 4 * span, 4, y, 4 * dim)
            d += 64
        else:
            if rows == 4:
                _ONE_4(w, line, count, weights, 4 * span, 4, y, 4 * dim)
            elif rows == 3:
                _ONE_3(w, line, count, weights, 4 * span, 4, y, 4 * dim)
            elif rows == 2:
                _ONE_2(w, line, count, weights, 4 * span, 4, y, 4 * dim)
            else:
                _ONE_1(w, line, count, weights, 4 * span, 4, y, 4 * dim)
            d += 16


@compiled
def _fetch(address: int, size: int) -> None:
    for i in range(0, size, 64):
        prefetch(address + i)


@compiled
def _attend(row: int, head: int, thread: int, kv: int, shape: Any, b: Any) -> None:
    """Attend with a row's queries of one key/value head."""
    group = shape[at.HEADS] // shape[at.KV_HEADS]
    begin = head * group
    while begin < (head + 1) * group:
        count = min(4, (head + 1) * group - begin)
        _attend_queries(row, head, begin, count, thread, kv, shape, b)
        begin += count


@compiled
def _attend_queries(
    row: int, head: int, query: int, count: int, thread: int, kv: int, shape: Any, b: Any
) -> None:
    """Attend with queries [query, query + count), at most four."""
    kv_heads, dim = shape[at.KV_HEADS], shape[at.HEAD_DIM]
    start = _of_row(b, row, at.START)
    stop = start + _of_row(b, row, at.POSITION) + 1
    first = start & ~int64(15)
    span = ((stop - first + 15) >> 4) << 4
    scores = b[at.SCRATCH] + 4 * thread * shape[at.SCRATCH_SIZE]
    for g in range(count):
        line = _row(scores, g, span, span)
        for i in range(span):
            line[i] = float32(0.0)
    q = b[at.QKV] + 4 * (row * shape[at.QKV_WIDTH] + query * dim)
    for i in range(0, span, at.LANES):
        keys = _block(kv, kv_heads, dim, first + i, head)
        if i + at.LANES < span:
            _fetch(_block(kv, kv_heads, dim, first + i + at.LANES, head), 4 * at.LANES * dim)
        _score(count, keys, dim, q, scores + 4 * i, span)
    out = b[at.ATTENDED] + 4 * (row * shape[at.ATTENDED_WIDTH] + query * dim)
    sums = scores + 4 * count * span
    totals = floats(sums, count)
    for g in range(count):
        totals[g] = softmax(scores + 4 * g * span, start - first, stop - first, span)
        y = floats(out + 4 * g * dim, dim)
        for d in range(dim):
            y[d] = float32(0.0)
    for i in range(0, span, at.LANES):
        lane = max(start - first - i, 0)
        seen = min(stop - first - i, at.LANES) - lane
        values = _block(kv, kv_heads, dim, first + i, head) + 2 * (at.LANES + lane) * dim
        weights = scores + 4 * (i + lane)
        _weigh(count, values, dim, seen, weights, span, out)
    for g in range(count):
        y = floats(out + 4 * g * dim, dim)
        inverse = float32(1.0) / totals[g]
        for d in range(dim):
            y[d] *= inverse


# --- a layer ---


@compiled
def _layer(
    number: int,
    rows: int,
    thread: int,
    eps: float,
    scale: float,
    sync: int,
    shape: Any,
    b: Any,
    fields: Any,
    m: Any,
) -> None:
    threads, kv_heads = shape[at.THREADS], shape[at.KV_HEADS]
    hidden, width = shape[at.HIDDEN], shape[at.STATE_WIDTH]
    attended, inner = shape[at.ATTENDED_WIDTH], shape[at.INNER_WIDTH]
    heads_size = shape[at.HEADS] * shape[at.HEAD_DIM]
    q_tiles, k_tiles = shape[at.Q_WIDTH] // TILE, shape[at.K_WIDTH] // TILE
    kv = fields[at.KEYS_VALUES]
    phase = number * at.PHASES

    # 0: norm, bytes, LoRA's first half for q, k and v
    row = _take(sync, phase)
    while row < rows:
        normed = _row(b[at.NORMED], row, width, width)
        states = _row(b[at.STATES], row, width, hidden)
        rms_norm(states, floats(fields[at.NORM_1], hidden), normed, hidden, eps)
        _read_row(b[at.NORMED] + 4 * row * width, hidden, row, at.Q, at.O, shape, b, m)
        _finish(sync, phase)
        row = _take(sync, phase)
    _wait(sync, phase, rows)

    # 1: q, k, v
    tiles = q_tiles + 2 * k_tiles
    pieces = min(tiles, 2 * threads)
    piece = _take(sync, phase + 1)
    while piece < pieces:
        for tile in range(tiles * piece // pieces, tiles * (piece + 1) // pieces):
            out = b[at.QKV] + 4 * TILE * tile
            module, own, size = at.Q, tile, heads_size
            if tile >= q_tiles:
                module = at.K + (tile - q_tiles) // k_tiles
                own = (tile - q_tiles) % k_tiles
                size = kv_heads * shape[at.HEAD_DIM]
            for first in range(0, rows, at.ROW_BLOCK):
                count = min(at.ROW_BLOCK, rows - first)
                _multiply_tile(
                    module,
                    own,
                    width,
                    size,
                    out + 4 * first * shape[at.QKV_WIDTH],
                    shape[at.QKV_WIDTH],
                    first,
                    count,
                    shape,
                    b,
                    m,
                )
        _finish(sync, phase + 1)
        piece = _take(sync, phase + 1)
    _wait(sync, phase + 1, pieces)

    # 2: RoPE, the new keys and values
    pieces = rows * kv_heads
    piece = _take(sync, phase + 2)
    while piece < pieces:
        _write_keys(piece // kv_heads, piece % kv_heads, scale, kv, shape, b)
        _finish(sync, phase + 2)
        piece = _take(sync, phase + 2)
    _wait(sync, phase + 2, pieces)

    # 3: attention
    piece = _take(sync, phase + 3)
    while piece < pieces:
        _attend(piece // kv_heads, piece % kv_heads, thread, kv, shape, b)
        _finish(sync, phase + 3)
        piece = _take(sync, phase + 3)
    _wait(sync, phase + 3, pieces)

    # 4: bytes, LoRA's first half for o
    row = _take(sync, phase + 4)
    while row < rows:
        inputs = b[at.ATTENDED] + 4 * row * attended
        _read_row(inputs, heads_size, row, at.O, at.GATE, shape, b, m)
        _finish(sync, phase + 4)
        row = _take(sync, phase + 4)
    _wait(sync, phase + 4, rows)

    # 5: o
    tiles = width // TILE
    pieces = min(tiles, 2 * threads)
    piece = _take(sync, phase + 5)
    while piece < pieces:
        for tile in range(tiles * piece // pieces, tiles * (piece + 1) // pieces):
            _add_tile(at.O, tile, attended, thread, rows, shape, b, m)
        _finish(sync, phase + 5)
        piece = _take(sync, phase + 5)
    _wait(sync, phase + 5, pieces)

    # 6: norm, bytes, LoRA's first half for gate and up
    row = _take(sync, phase + 6)
    while row < rows:
        normed = _row(b[at.NORMED], row, width, width)
        states = _row(b[at.STATES], row, width, hidden)
        rms_norm(states, floats(fields[at.NORM_2], hidden), normed, hidden, eps)
        _read_row(b[at.NORMED] + 4 * row * width, hidden, row, at.GATE, at.DOWN, shape, b, m)
        _finish(sync, phase + 6)
        row = _take(sync, phase + 6)
    _wait(sync, phase + 6, rows)

    # 7: gate and up
    tiles = inner // TILE
    pieces = min(tiles, 2 * threads)
    piece = _take(sync, phase + 7)
    while piece < pieces:
        for tile in range(tiles * piece // pieces, tiles * (piece + 1) // pieces):
            _gate_tile(tile, thread, rows, shape, b, m)
        _finish(sync, phase + 7)
        piece = _take(sync, phase + 7)
    _wait(sync, phase + 7, pieces)

    # 8: bytes, LoRA's first half for down
    row = _take(sync, phase + 8)
    while row < rows:
        _read_row(
            b[at.GATED] + 4 * row * inner, shape[at.INNER], row, at.DOWN, at.MODULES, shape, b, m
        )
        _finish(sync, phase + 8)
        row = _take(sync, phase + 8)
    _wait(sync, phase + 8, rows)

    # 9: down
    tiles = width // TILE
    pieces = min(tiles, 2 * threads)
    piece = _take(sync, phase + 9)
    while piece < pieces:
        for tile in range(tiles * piece // pieces, tiles * (piece + 1) // pieces):
            _add_tile(at.DOWN, tile, inner, thread, rows, shape, b, m)
        _finish(sync, phase + 9)
        piece = _take(sync, phase + 9)
    _wait(sync, phase + 9, pieces)


@compiled
def _logits(
    phase: int,
    rows: int,
    emitting: Any,
    thread: int,
    eps: float,
    sync: int,
    shape: Any,
    b: Any,
    head: Any,
) -> None:
    """Write the logits of the rows `emitting`, in order."""
    hidden, width, count = shape[at.HIDDEN], shape[at.STATE_WIDTH], len(emitting)
    bytes_width, scales_row = shape[at.WIDEST], 4 * shape[at.GROUPS]
    row = _take(sync, phase)
    while row < count:
        normed = _row(b[at.NORMED], row, width, width)
        states = _row(b[at.STATES], emitting[row], width, hidden)
        rms_norm(states, floats(b[at.FINAL_NORM], hidden), normed, hidden, eps)
        _to_bytes(b[at.NORMED] + 4 * row * width, hidden, row, shape, b)
        _finish(sync, phase)
        row = _take(sync, phase)
    _wait(sync, phase, count)
    vocabulary = shape[at.VOCAB_WIDTH]
    tiles = vocabulary // TILE
    pieces = min(tiles, 8 * shape[at.THREADS])
    piece = _take(sync, phase + 1)
    while piece < pieces:
        for tile in range(tiles * piece // pieces, tiles * (piece + 1) // pieces):
            for first in range(0, count, at.ROW_BLOCK):
                out_address = b[at.LOGITS] + 4 * (first * vocabulary + TILE * tile)
                taken = min(at.ROW_BLOCK, count - first)
                multiply(
                    head[at.WEIGHT] + tile * TILE * width,
                    width,
                    b[at.BYTES] + first * bytes_width,
                    bytes_width,
                    b[at.SUMS] + scales_row * first,
                    b[at.ROW_SCALES] + scales_row * first,
                    scales_row,
                    head[at.SCALES] + 4 * TILE * tile,
                    out_address,
                    4 * vocabulary,
                    taken,
                )
                if head[at.BIAS] != 0:
                    bias = floats(head[at.BIAS] + 4 * TILE * tile, TILE)
                    for r in range(taken):
                        y = _row(out_address, r, vocabulary, TILE)
                        for i in range(TILE):
                            y[i] += bias[i]
        _finish(sync, phase + 1)
        piece = _take(sync, phase + 1)
    _wait(sync, phase + 1, pieces)


@cached
def forward(
    thread: int,
    rows: int,
    emitting: Any,
    eps: float,
    scale: float,
    sync: int,
    shape: Any,
    buffers: Any,
    layers: Any,
    modules: Any,
    head: Any,
) -> None:
    """Take `rows` tokens through all layers, and those of `emitting` to their logits.

    Args:
        thread: number of this thread, below shape[THREADS]; all of them call it.
        emitting: int64 (n,), rows.
        scale: of the queries.
        sync: address of int64 zeros, two for each phase.
    """
    for number in range(len(layers)):
        _layer(
            number,
            rows,
            thread,
            eps,
            scale,
            sync,
            shape,
            buffers,
            layers[number],
            modules[number],
        )
    if len(emitting) > 0:
        phase = len(layers) * at.PHASES
        _logits(phase, rows, emitting, thread, eps, sync, shape, buffers, head)
