"""Attention and LoRA of a CPU, one row at a time: what a row gets depends on nothing beside it.

torch's own choose by shape in which order they sum. Every function takes addresses of contiguous
rows; threads take rows that nobody took yet (phases.py), so their number changes nothing either.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import carray, float32, int16, int64

from deployments.engine.cpu.intrinsics import array_at, from_bfloat16, to_bfloat16
from deployments.engine.cpu.kernels import cached, compiled, exp, expand, floats, shrink
from deployments.engine.cpu.phases import take


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
def _dot(x: Any, y: Any, count: int) -> Any:
    total = float32(0.0)
    for i in range(count):
        total += x[i] * y[i]
    return total


@compiled
def _tanh(x: Any) -> Any:
    return float32(2.0) / (float32(1.0) + exp(float32(-2.0) * x)) - float32(1.0)


@compiled
def _attend_row(
    row: int, head: int, first: int, count: int, bias_at: int, s: AttentionStep, scratch: Any
) -> None:
    """Attend with a row's queries of one key/value head over `count` positions from `first` on."""
    dim, group, size = s.dim, s.group, 2 if s.is_half else 4
    query, sums, line = scratch[: group * dim], scratch[group * dim :], scratch[2 * group * dim :]
    scores = scratch[(2 * group + 1) * dim :]
    at_q = (row * s.kv_heads + head) * group * dim
    _read(s.q + size * at_q, group * dim, s.is_half, query)
    step = 2 * s.kv_heads * dim
    for j in range(count):
        _read(s.cache + size * ((first + j) * step + head * dim), dim, s.is_half, line)
        for g in range(group):
            scores[g * count + j] = _dot(query[g * dim :], line, dim) * s.scale
    for g in range(group):
        own = scores[g * count : (g + 1) * count]
        if s.bias != 0:
            _read_bias(own, count, s.bias + size * ((head * group + g) * s.bias_row), bias_at, s)
        most = float32(-3e38)
        for j in range(count):
            if s.softcap > 0.0:
                own[j] = s.softcap * _tanh(own[j] / s.softcap)
            most = max(most, own[j])
        total = float32(0.0)
        for j in range(count):
            own[j] = exp(own[j] - most)
            total += own[j]
        inverse = float32(1.0) / total
        for j in range(count):
            own[j] *= inverse
    for i in range(group * dim):
        sums[i] = float32(0.0)
    for j in range(count):
        place = s.cache + size * ((first + j) * step + (s.kv_heads + head) * dim)
        _read(place, dim, s.is_half, line)
        for g in range(group):
            weight, own = scores[g * count + j], sums[g * dim :]
            for i in range(dim):
                own[i] += weight * line[i]
    _write(s.out + size * at_q, group * dim, s.is_half, sums)


@compiled
def _read_bias(scores: Any, count: int, address: int, last: int, s: AttentionStep) -> None:
    """Add the bias of the newest position, at 0, and of those before it to scores that end so."""
    if s.is_half:
        bits = _halves(address, last + 1)
        for j in range(count):
            scores[j] += from_bfloat16(bits[last - j])
    else:
        values = floats(address, last + 1)
        for j in range(count):
            scores[j] += values[last - j]


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


@cached
def attend_rows(counter: int, firsts: Any, counts: Any, s: AttentionStep) -> None:
    """Attend with every row t over the positions [firsts[t], firsts[t] + counts[t]).

    With a bias, its entry 0 is added to a row's last position, entry 1 to the one before, ...

    Args:
        counter: address of an int64, 0 at first, that all threads share.
        firsts, counts: int64 (T,)
    """
    longest = 0
    for count in counts:
        longest = max(longest, count)
    scratch = np.empty((2 * s.group + 1) * s.dim + s.group * longest, np.float32)
    pieces = len(counts) * s.kv_heads
    piece = take(counter, int64(0))
    while piece < pieces:
        row, head = piece // s.kv_heads, piece % s.kv_heads
        _attend_row(row, head, firsts[row], counts[row], counts[row] - 1, s, scratch)
        piece = take(counter, int64(0))


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
                shrink(x[row], x.shape[1], a[n], slot, rank, stack_rank, shrunk)
                expand(
                    shrunk, rank, b[n], slot, stack_rank, size, 0, out[row, begin : begin + size]
                )
                begin += size
        row = take(counter, int64(0))
