"""Attention and LoRA of a CPU, one row at a time: what a row gets depends on nothing beside it.

torch's own choose by shape in which order they sum. Every function takes addresses of contiguous
rows; threads take rows that nobody took yet (phases.py), so their number changes nothing either.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray, float32, int16, int64

from deployments.engine.cpu.intrinsics import array_at, from_bfloat16, to_bfloat16
from deployments.engine.cpu.kernels import cached, compiled, exp, floats, zero
from deployments.engine.cpu.phases import take
from deployments.engine.cpu.tiles import mixing_tile, score_tile

_DOTS_1, _DOTS_4 = (score_tile(rows, is_wide=False) for rows in (1, 4))
_WIDE_DOTS_1, _WIDE_DOTS_4 = (score_tile(rows, is_wide=True) for rows in (1, 4))
_SHAPES = ((1, 1), (1, 4), (4, 1), (4, 4))  # rows, and columns in vectors
_MIX_1_1, _MIX_1_4, _MIX_4_1, _MIX_4_4 = (mixing_tile(*shape, 1) for shape in _SHAPES)
_WIDE_MIX_1_1, _WIDE_MIX_1_4, _WIDE_MIX_4_1, _WIDE_MIX_4_4 = (
    mixing_tile(*shape, 1, is_wide=True) for shape in _SHAPES
)


class AttentionStep(NamedTuple):
    """Hold what all threads know of an attention over the KV cache.

    Addresses: q, out (T, H * G, D); cache (positions, 2, H, D); bias (H * G, bias_row), 0 for none.
    All are in float32, or in bfloat16 (`is_half`).
    """

    q: int
    out: int
    cache: int
    bias: int
    bias_row: int
    is_half: bool
    kv_heads: int
    group: int
    dim: int
    scale: float
    softcap: float  # 0.0: none


@compiled
def _halves(address: int, count: int) -> Any:
    return carray(array_at(address), (count,), int16)


@compiled
def _read(address: int, count: int, is_half: bool, out: Any) -> None:
    """Copy numbers at an address to float32."""
    if is_half:
        bits = _halves(address, count)
        for i in range(count):
            out[i] = from_bfloat16(bits[i])
    else:
        values = floats(address, count)
        for i in range(count):
            out[i] = values[i]


@compiled
def _write(address: int, count: int, is_half: bool, values: Any) -> None:
    if is_half:
        bits = _halves(address, count)
        for i in range(count):
            bits[i] = to_bfloat16(values[i])
    else:
        out = floats(address, count)
        for i in range(count):
            out[i] = values[i]


@compiled
def _tanh(x: Any) -> Any:
    return float32(2.0) / (float32(1.0) + exp(float32(-2.0) * x)) - float32(1.0)


@compiled
def _score(
    rows: int, keys: int, line: int, count: int, x: int, y: int, span: int, s: AttentionStep
) -> None:
    """Write the products of queries (rows, dim) and keys (count, dim) to y (rows, span)."""
    dim, r = s.dim, 0
    while r < rows:
        x_at, y_at = x + 4 * dim * r, y + 4 * span * r
        if rows - r >= 4:
            if s.is_half:
                _DOTS_4(keys, line, count, x_at, 4 * dim, dim, y_at, 4 * span)
            else:
                _WIDE_DOTS_4(keys, line, count, x_at, 4 * dim, dim, y_at, 4 * span)
            r += 4
        else:
            if s.is_half:
                _DOTS_1(keys, line, count, x_at, 4 * dim, dim, y_at, 4 * span)
            else:
                _WIDE_DOTS_1(keys, line, count, x_at, 4 * dim, dim, y_at, 4 * span)
            r += 1


@compiled
def _mix(
    rows: int, values: int, line: int, count: int, x: int, span: int, y: int, s: AttentionStep
) -> None:
    """Add weights x (rows, span) @ values (count, dim) to y (rows, dim)."""
    size, row, d = 2 if s.is_half else 4, 4 * s.dim, 0
    while d < s.dim:
        is_four = s.dim - d >= 64
        r = 0
        while r < rows:
            w, x_at, y_at = values + size * d, x + 4 * span * r, y + row * r + 4 * d
            if rows - r >= 4 and is_four:
                if s.is_half:
                    _MIX_4_4(w, line, count, x_at, 4 * span, 4, y_at, row)
                else:
                    _WIDE_MIX_4_4(w, line, count, x_at, 4 * span, 4, y_at, row)
            elif rows - r >= 4:
                if s.is_half:
                    _MIX_4_1(w, line, count, x_at, 4 * span, 4, y_at, row)
                else:
                    _WIDE_MIX_4_1(w, line, count, x_at, 4 * span, 4, y_at, row)
            elif is_four:
                if s.is_half:
                    _MIX_1_4(w, line, count, x_at, 4 * span, 4, y_at, row)
                else:
                    _WIDE_MIX_1_4(w, line, count, x_at, 4 * span, 4, y_at, row)
            elif s.is_half:
                _MIX_1_1(w, line, count, x_at, 4 * span, 4, y_at, row)
            else:
                _WIDE_MIX_1_1(w, line, count, x_at, 4 * span, 4, y_at, row)
            r += 4 if rows - r >= 4 else 1
        d += 64 if is_four else 16


@compiled
def _weigh_row(scores: Any, count: int, bias: int, s: AttentionStep) -> None:
    """Turn a row's scores (count,) into its weights."""
    most = float32(-3e38)
    for j in range(count):
        scores[j] *= s.scale
    if bias != 0 and s.is_half:
        bits = _halves(bias, count)
        for j in range(count):
            scores[j] += from_bfloat16(bits[count - 1 - j])
    elif bias != 0:
        values = floats(bias, count)
        for j in range(count):
            scores[j] += values[count - 1 - j]
    if s.softcap > 0.0:
        for j in range(count):
            scores[j] = s.softcap * _tanh(scores[j] / s.softcap)
    for j in range(count):
        most = max(most, scores[j])
    total = float32(0.0)
    for j in range(count):
        scores[j] = exp(scores[j] - most)
        total += scores[j]
    inverse = float32(1.0) / total
    for j in range(count):
        scores[j] *= inverse


@compiled
def _attend_piece(
    begin: int, end: int, head: int, firsts: Any, counts: Any, s: AttentionStep, scratch: Any
) -> None:
    """Attend with the rows [begin, end), whose keys are neighbours, and one key/value head.

    Keys that one row sees and another does not have weight zero there, which changes no sum.
    """
    dim, group, size = s.dim, s.group, 2 if s.is_half else 4
    rows = (end - begin) * group
    first, last = firsts[begin], firsts[begin] + counts[begin]
    for row in range(begin, end):
        first, last = min(first, firsts[row]), max(last, firsts[row] + counts[row])
    span, line = last - first, size * 2 * s.kv_heads * dim
    query = scratch.ctypes.data
    sums, scores = query + 4 * rows * dim, query + 8 * rows * dim
    zero(floats(sums, rows * dim))
    for r in range(rows):
        _read(_of_row(s.q, begin, head, r, s), dim, s.is_half, floats(query + 4 * r * dim, dim))
    keys = s.cache + line * first + size * head * dim
    _score(rows, keys, line, span, query, scores, span, s)
    for r in range(rows):
        row = begin + r // group
        own = floats(scores + 4 * r * span, span)
        skipped, count, bias = firsts[row] - first, counts[row], 0
        if s.bias != 0:
            bias = s.bias + size * (head * group + r % group) * s.bias_row
        _weigh_row(floats(scores + 4 * (r * span + skipped), count), count, bias, s)
        for j in range(skipped):
            own[j] = float32(0.0)
        for j in range(skipped + count, span):
            own[j] = float32(0.0)
    _mix(rows, keys + size * s.kv_heads * dim, line, span, scores, span, sums, s)
    for r in range(rows):
        _write(_of_row(s.out, begin, head, r, s), dim, s.is_half, floats(sums + 4 * r * dim, dim))


@compiled
def _of_row(table: int, begin: int, head: int, r: int, s: AttentionStep) -> int:
    """Return where the r-th query of a piece is in q, or its result in out."""
    size = 2 if s.is_half else 4
    row, query = begin + r // s.group, head * s.group + r % s.group
    return table + size * (row * s.kv_heads * s.group + query) * s.dim


@cached
def attend_rows(counter: int, pieces: Any, firsts: Any, counts: Any, s: AttentionStep) -> None:
    """Attend with every row t over the positions [firsts[t], firsts[t] + counts[t]).

    With a bias, its entry 0 is added to a row's last position, entry 1 to the one before, ...

    Args:
        counter: address of an int64, 0 at first, that all threads share.
        pieces: int64 (n + 1,), ascending: rows of the same keys, for the most part, are together.
        firsts, counts: int64 (T,)
    """
    largest = 0
    for n in range(len(pieces) - 1):
        begin, end = pieces[n], pieces[n + 1]
        first, last = firsts[begin], firsts[begin] + counts[begin]
        for row in range(begin, end):
            first, last = min(first, firsts[row]), max(last, firsts[row] + counts[row])
        rows = (end - begin) * s.group
        largest = max(largest, rows * (2 * s.dim + last - first))
    scratch = np.empty(largest, np.float32)
    total = (len(pieces) - 1) * s.kv_heads
    number = take(counter, int64(0))
    while number < total:
        piece, head = number // s.kv_heads, number % s.kv_heads
        _attend_piece(pieces[piece], pieces[piece + 1], head, firsts, counts, s, scratch)
        number = take(counter, int64(0))


@compiled
def _shrink(x: Any, size: int, a: int, slot: int, rank: int, stack_rank: int, out: Any) -> None:
    """Write x @ A of the slot's first `rank` lines to out."""
    for j in range(rank):
        line = floats(a + 4 * size * (slot * stack_rank + j), size)
        total = float32(0.0)
        for i in range(size):
            total += x[i] * line[i]
        out[j] = total


@compiled
def _expand(
    shrunk: Any, rank: int, b: int, slot: int, stack_rank: int, count: int, out: Any
) -> None:
    """Add shrunk @ B to out (count,)."""
    base = b + 4 * count * slot * stack_rank
    j = 0
    while j + 4 <= rank:  # four at a time: out is read and written once for them
        a0, a1 = floats(base + 4 * count * j, count), floats(base + 4 * count * (j + 1), count)
        a2, a3 = (
            floats(base + 4 * count * (j + 2), count),
            floats(base + 4 * count * (j + 3), count),
        )
        f0, f1, f2, f3 = shrunk[j], shrunk[j + 1], shrunk[j + 2], shrunk[j + 3]
        for i in range(count):
            out[i] += f0 * a0[i] + f1 * a1[i] + f2 * a2[i] + f3 * a3[i]
        j += 4
    while j < rank:
        line, factor = floats(base + 4 * count * j, count), shrunk[j]
        for i in range(count):
            out[i] += factor * line[i]
        j += 1


@cached
def adapt_rows(
    counter: int,
    x: Any,
    slots: Any,
    ranks: Any,
    a: Any,
    b: Any,
    sizes: Any,
    stack_rank: int,
    out: Any,
) -> None:
    """Write each row's LoRA product of up to n modules side by side.

    Args:
        counter: as in `attend_rows`.
        x: float32 (T, in).
        slots: int64 (T,); ranks: int64 by slot.
        a, b: int64 (n,), addresses of the modules' stacks (lora/stacks.py), float32.
        sizes: int64 (n,), outputs of each module.
        stack_rank: R of the stacks.
        out: float32 (T, sum of sizes), zeros.
    """
    shrunk = np.empty(stack_rank, np.float32)
    row = take(counter, int64(0))
    while row < len(x):
        slot = slots[row]
        if slot != 0:
            begin = 0
            for n in range(len(a)):
                rank, size = ranks[slot], sizes[n]
                _shrink(x[row], x.shape[1], a[n], slot, rank, stack_rank, shrunk)
                _expand(shrunk, rank, b[n], slot, stack_rank, size, out[row, begin : begin + size])
                begin += size
        row = take(counter, int64(0))
