"""Attend over the KV cache, one row and one key/value head at a time.

The step has the cache (T, 2, H, D) to itself and lays it out its own way: each 16 positions hold,
for each head, the keys as (D, 16) and the values as (16, D), so that both products read whole
vectors.
"""

from numba import carray, float32, int16, int64

from deployments.engine.cpu import layout as at
from deployments.engine.cpu.adapters import field_of
from deployments.engine.cpu.intrinsics import array_at, to_bfloat16
from deployments.engine.cpu.kernels import compiled, fetch, floats, rotate, softmax, zero
from deployments.engine.cpu.layout import Step
from deployments.engine.cpu.rows import row_of, scratch_of
from deployments.engine.cpu.tiles import mixing_tile

_KEYS_1, _KEYS_2, _KEYS_3, _KEYS_4 = (mixing_tile(rows, 1, 4) for rows in (1, 2, 3, 4))
_ONE_1, _ONE_2, _ONE_3, _ONE_4 = (mixing_tile(rows, 1, 1) for rows in (1, 2, 3, 4))
_FOUR_1, _FOUR_2, _FOUR_3, _FOUR_4 = (mixing_tile(rows, 4, 1) for rows in (1, 2, 3, 4))


@compiled
def _block(layer: int, kv_heads: int, head_dim: int, position: int, head: int) -> int:
    """Return where a block of 16 positions keeps a head's keys (D, 16), then its values (16, D)."""
    number = (position >> 4) * kv_heads + head
    return layer + number * 4 * at.LANES * head_dim


@compiled
def write_keys(row: int, head: int, kv: int, s: Step) -> None:
    """Apply RoPE to a row's queries of one key/value head and its key; cache key and value."""
    kv_heads, dim = s.shape[at.KV_HEADS], s.shape[at.HEAD_DIM]
    group = s.shape[at.HEADS] // kv_heads
    width, q_width, k_width = s.shape[at.QKV_WIDTH], s.shape[at.Q_WIDTH], s.shape[at.K_WIDTH]
    position, start = field_of(s, row, at.POSITION), field_of(s, row, at.START)
    cos, sin = (
        row_of(s.buffers[at.COS], position, dim, dim),
        row_of(s.buffers[at.SIN], position, dim, dim),
    )
    line = s.buffers[at.QKV] + 4 * row * width
    for query in range(head * group, (head + 1) * group):
        rotate(floats(line + 4 * query * dim, dim), cos, sin, dim, s.scale)
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
def _attend_queries(
    row: int, head: int, query: int, count: int, thread: int, kv: int, s: Step
) -> None:
    """Attend with queries [query, query + count), at most four."""
    kv_heads, dim = s.shape[at.KV_HEADS], s.shape[at.HEAD_DIM]
    start = field_of(s, row, at.START)
    stop = start + field_of(s, row, at.POSITION) + 1
    first = start & ~int64(15)
    span = ((stop - first + 15) >> 4) << 4
    scores = scratch_of(thread, s)
    zero(floats(scores, count * span))
    q = s.buffers[at.QKV] + 4 * (row * s.shape[at.QKV_WIDTH] + query * dim)
    for i in range(0, span, at.LANES):
        keys = _block(kv, kv_heads, dim, first + i, head)
        if i + at.LANES < span:
            fetch(_block(kv, kv_heads, dim, first + i + at.LANES, head), 4 * at.LANES * dim)
        _score(count, keys, dim, q, scores + 4 * i, span)
    out = s.buffers[at.ATTENDED] + 4 * (row * s.shape[at.ATTENDED_WIDTH] + query * dim)
    sums = scores + 4 * count * span
    totals = floats(sums, count)
    for g in range(count):
        totals[g] = softmax(scores + 4 * g * span, start - first, stop - first, span)
        zero(floats(out + 4 * g * dim, dim))
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


@compiled
def attend(row: int, head: int, thread: int, kv: int, s: Step) -> None:
    """Attend with a row's queries of one key/value head."""
    group = s.shape[at.HEADS] // s.shape[at.KV_HEADS]
    begin = head * group
    while begin < (head + 1) * group:
        count = min(4, (head + 1) * group - begin)
        _attend_queries(row, head, begin, count, thread, kv, s)
        begin += count
