"""Attend over the KV cache in a decode step with Triton kernels. Imported only where they run.

A kernel that reads a product next also adds the product's LoRA expansion: one launch less, and the
product is not written twice.
"""

import triton
import triton.language as tl

from deployments.engine.kernels.triton_kv_cache import keep, scaled
from deployments.engine.kernels.triton_lora import (
    add_lora,
    add_ranks,
    normed,
    ranks_ahead,
    stack_rows,
)
from deployments.engine.kernels.triton_overlap import after_earlier_kernels, launch_next


@triton.jit
def softmax_step(scores, largest, total, AXIS: tl.constexpr):
    """Take one block of keys into an online softmax (Milakov and Gimelshein 2018).

    scores: (BLOCK_N,) with AXIS 0, (M, BLOCK_N) with AXIS 1; very negative where masked.
    largest, total: the largest score and the sum of exponentials so far, () or (M,).
    Returns the new two, the factor that rescales earlier sums, and the block's weights.
    """
    now = tl.maximum(largest, tl.max(scores, AXIS))
    shrink = tl.exp(largest - now)
    p = tl.exp(scores - now[:, None]) if AXIS == 1 else tl.exp(scores - now)
    return now, total * shrink + tl.sum(p, AXIS), shrink, p


@triton.jit
def capped(scores, CAP: tl.constexpr):
    """Return CAP * tanh(scores / CAP), or the scores if CAP is 0."""
    if CAP > 0:
        return CAP * (2.0 * tl.sigmoid(scores * (2.0 / CAP)) - 1.0)
    return scores


@triton.jit
def _kept(
    kv_cache, start, bias, key_scales, value_scales, first, n, columns, mask, size,
    HAS_BIAS: tl.constexpr, IS_INT8: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Return keys and values (BLOCK_N, D) of a head from position `first` on, what is added to
    their scores (BLOCK_N,), very negative from n on, and their scales."""
    j = first + tl.arange(0, BLOCK_N)
    seen = j < n
    at = ((start + j) * (2 * size))[:, None] + columns[None, :]
    both = seen[:, None] & mask[None, :]
    keys = tl.load(kv_cache + at, mask=both, other=0.0)
    values = tl.load(kv_cache + at + size, mask=both, other=0.0)
    added = tl.where(seen, 0.0, -1e30)
    if HAS_BIAS:
        added = tl.load(bias + (n - j), mask=seen, other=-1e30).to(tl.float32)
    key_scale = scaled(1.0, key_scales + j, seen, 0, IS_INT8)
    value_scale = scaled(1.0, value_scales + j, seen, 0, IS_INT8)
    return keys, values, added, key_scale, value_scale


@triton.jit
def _attended(q, block, largest, total, acc):
    """Take `_kept` keys and values into the softmax and its sum of values."""
    keys, values, added, key_scale, value_scale = block
    scores = tl.sum(q[None, :] * keys.to(tl.float32), 1) * key_scale + added
    largest, total, shrink, p = softmax_step(scores, largest, total, AXIS=0)
    p *= value_scale
    return largest, total, acc * shrink + tl.sum(p[:, None] * values.to(tl.float32), 0)


@triton.jit
def decode_kernel(
    qkv, kv_cache, starts, lengths, bias, out, scale, qkv_row, bias_row, shrunk, slots, bq, bk,
    bv, scales, scales_row,
    H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK_N: tl.constexpr,
    APPEND: tl.constexpr, HAS_BIAS: tl.constexpr, R: tl.constexpr, RC: tl.constexpr,
    P: tl.constexpr, PQ: tl.constexpr, PK: tl.constexpr, PV: tl.constexpr,
    OVERLAPS: tl.constexpr, IS_INT8: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """Attend with one query head for each key/value head. Program (h, b).

    What earlier steps wrote is read before earlier kernels of this one end. PASS: where several b
    are tokens of one row, 1 only writes their keys and values and 2 attends behind that; else 0.
    """
    launch_next(OVERLAPS)
    h = tl.program_id(0)
    b = tl.program_id(1)
    n = tl.load(lengths + b)
    start = tl.load(starts + b).to(tl.int64)
    d = tl.arange(0, DP)
    dm = d < D
    columns = h * D + d
    bias += h * bias_row
    key_scales = scales + h * scales_row + start
    value_scales = key_scales + H * scales_row
    if PASS == 0:
        block = _kept(
            kv_cache, start, bias, key_scales, value_scales, 0, n, columns, dm, H * D, HAS_BIAS,
            IS_INT8, BLOCK_N,
        )  # fmt: skip
    if APPEND and HAS_BIAS:
        own_bias = tl.load(bias).to(tl.float32)
    line = qkv + b * qkv_row + columns
    slot = 0
    if P > 0:
        slot = tl.load(slots + b).to(tl.int64)
    if PQ >= 0:
        weights_q = stack_rows(bq, columns, dm, slot, 0, H * D, R, RC)
    if PK >= 0:
        weights_k = stack_rows(bk, columns, dm, slot, 0, H * D, R, RC)
    if PV >= 0:
        weights_v = stack_rows(bv, columns, dm, slot, 0, H * D, R, RC)
    after_earlier_kernels(OVERLAPS)
    q = tl.load(line, mask=dm, other=0.0).to(tl.float32)
    if APPEND:
        k = tl.load(line + H * D, mask=dm, other=0.0).to(tl.float32)
        v = tl.load(line + 2 * H * D, mask=dm, other=0.0).to(tl.float32)
    if PQ >= 0:
        q = add_lora(q, weights_q, columns, dm, shrunk, bq, slot, b, H * D, R, RC, P, PQ)
    q = q * scale
    largest = -1e30
    total = 0.0
    acc = tl.zeros((DP,), tl.float32)
    if APPEND:
        if PK >= 0:
            k = add_lora(k, weights_k, columns, dm, shrunk, bk, slot, b, H * D, R, RC, P, PK)
        if PV >= 0:
            v = add_lora(v, weights_v, columns, dm, shrunk, bv, slot, b, H * D, R, RC, P, PV)
        own = kv_cache + (start + n) * (2 * H * D) + columns
        kept_k = keep(k, own, key_scales + n, dm, IS_INT8)
        acc = keep(v, own + H * D, value_scales + n, dm, IS_INT8)
        largest = tl.sum(q * kept_k, 0)
        if HAS_BIAS:
            largest += own_bias
        total = 1.0
    if PASS != 1:
        if PASS == 2:
            block = _kept(
                kv_cache, start, bias, key_scales, value_scales, 0, n, columns, dm, H * D, HAS_BIAS,
                IS_INT8, BLOCK_N,
            )  # fmt: skip
        largest, total, acc = _attended(q, block, largest, total, acc)
        for first in range(BLOCK_N, n, BLOCK_N):
            block = _kept(
                kv_cache, start, bias, key_scales, value_scales, first, n, columns, dm, H * D,
                HAS_BIAS, IS_INT8, BLOCK_N,
            )  # fmt: skip
            largest, total, acc = _attended(q, block, largest, total, acc)
        tl.store(out + b * (H * D) + columns, (acc / total).to(out.dtype.element_ty), mask=dm)


@triton.jit
def _together(
    partials, sums, used, mask, size, GP: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr
):
    """Return the sum of values (GP, DP), and of exponentials (GP,), of the first `used` splits.

    partials: (GP, DP) where the first split's sum of values lies; the next is `size` further.
    sums: (GP,) where its largest score lies, its sum GP further; the next split's, 2 GP further.
    """
    s = tl.arange(0, SPLITS)
    at = sums[None, :] + s[:, None] * (2 * GP)
    there = (s < used)[:, None]
    largest = tl.load(at, mask=there, other=-1e30, cache_modifier=".cg")
    totals = tl.load(at + GP, mask=there, other=0.0, cache_modifier=".cg")
    weights = tl.exp(largest - tl.max(largest, 0)[None, :])
    total = tl.sum(weights * totals, 0)
    acc = tl.zeros((GP, DP), tl.float32)
    for some in tl.static_range(0, SPLITS, 4):  # are asked for before one is added
        pieces = ()
        for other in tl.static_range(some, min(some + 4, SPLITS)):
            own = partials + other * size
            pieces = pieces + (
                tl.load(own, mask=mask & (other < used), other=0.0, cache_modifier=".cg"),
            )
        for other in tl.static_range(len(pieces)):
            weight = tl.sum(tl.where((s == some + other)[:, None], weights, 0.0), 0)
            acc += pieces[other] * weight[:, None]
    return acc, total


@triton.jit
def rope_decode_kernel(
    qkv, kv_cache, starts, lengths, cos, sin, norm, eps, out, scale, qkv_row, shrunk, slots, bq, bk,
    bv, scales, scales_row, prompt_starts, prompts, partials, sums, counters,
    MERGED: tl.constexpr, HAS_NORM: tl.constexpr, SPLITS: tl.constexpr, FEWEST: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, GQ: tl.constexpr, GP: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, ROT: tl.constexpr, WINDOW: tl.constexpr, CAP: tl.constexpr,
    BLOCK_N: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, P: tl.constexpr, PQ: tl.constexpr,
    PK: tl.constexpr, PV: tl.constexpr, OVERLAPS: tl.constexpr, IS_INT8: tl.constexpr,
    PASS: tl.constexpr,
):  # fmt: skip
    """Attend with G query heads for a key/value head. Program (h, b, split).

    The heads are a tile of GQ >= G rows, and of GP >= 16 where they are multiplied.

    The keys are cut into at most SPLITS parts of FEWEST blocks or more, which the last program to
    end puts together, as Flash-Decoding does (Dao et al. 2023). The first ROT dimensions of a head
    are rotated. WINDOW and CAP are 0 for none. HAS_NORM: queries and keys are normed first. What no
    kernel of this step writes is read before earlier ones end. PASS: 1 only writes keys and values.
    """
    launch_next(OVERLAPS)
    h = tl.program_id(0)
    b = tl.program_id(1)
    n = tl.load(lengths + b)
    start = tl.load(starts + b).to(tl.int64)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(n - WINDOW + 1, 0)
    last = n
    if MERGED:  # the row's prompt follows
        last = n + tl.load(prompts + b)
        prompt_start = tl.load(prompt_starts + b).to(tl.int64)
    split = 0
    used = 1
    if SPLITS > 1:
        split = tl.program_id(2)
        blocks = tl.maximum(tl.cdiv(last - begin, BLOCK_N), 1)
        share = tl.maximum(tl.cdiv(blocks, SPLITS), FEWEST)
        used = tl.cdiv(blocks, share)
        begin += split * share * BLOCK_N
        last = tl.minimum(last, begin + share * BLOCK_N)
    g = tl.arange(0, GQ)
    d = tl.arange(0, DP)
    dm = d < D
    slot = 0
    if P > 0:
        slot = tl.load(slots + b).to(tl.int64)
    line = qkv + b * qkv_row
    qm = (g < G)[:, None] & dm[None, :]
    q_at = (h * G + g)[:, None] * D + d[None, :]
    columns = h * D + d
    if PQ >= 0:
        rows_q = bq + slot * (R * H * G * D) + q_at
        weights_q = ranks_ahead(rows_q, H * G * D, qm, RC)
    if PK >= 0:
        weights_k = stack_rows(bk, columns, dm, slot, 0, H * D, R, RC)
    if PV >= 0:
        weights_v = stack_rows(bv, columns, dm, slot, 0, H * D, R, RC)
    if ROT > 0:
        dr = d < ROT
        other = tl.where(d < ROT // 2, d + ROT // 2, tl.where(dr, d - ROT // 2, d))
        cosine = tl.load(cos + n * ROT + d, mask=dr, other=1.0).to(tl.float32)
        sine = tl.load(sin + n * ROT + d, mask=dr, other=0.0).to(tl.float32)
    if HAS_NORM:
        q_weight = tl.load(norm + q_at, mask=qm, other=0.0).to(tl.float32)
        k_weight = tl.load(norm + H * G * D + columns, mask=dm, other=0.0).to(tl.float32)
    if split >= used:
        return
    after_earlier_kernels(OVERLAPS)
    q = tl.load(line + q_at, mask=qm, other=0.0).to(tl.float32)
    keys_line = line + H * G * D
    k = tl.load(keys_line + columns, mask=dm, other=0.0).to(tl.float32)
    v = tl.load(keys_line + H * D + columns, mask=dm, other=0.0).to(tl.float32)
    if PQ >= 0:
        shrunk_q = shrunk + (b * P + PQ) * R
        q = add_ranks(q, weights_q, rows_q, H * G * D, qm, shrunk_q, R, RC)
    if PK >= 0:
        k = add_lora(k, weights_k, columns, dm, shrunk, bk, slot, b, H * D, R, RC, P, PK)
    if PV >= 0:
        v = add_lora(v, weights_v, columns, dm, shrunk, bv, slot, b, H * D, R, RC, P, PV)
    kind = qkv.dtype.element_ty
    if HAS_NORM:
        q = normed(q, (1.0 / tl.sqrt(tl.sum(q * q, 1) / D + eps))[:, None], q_weight, kind)
        k = normed(k, 1.0 / tl.sqrt(tl.sum(k * k, 0) / D + eps), k_weight, kind)
    if ROT > 0:
        q_other = tl.gather(q, tl.broadcast_to(other[None, :], (GQ, DP)), 1)
        q = q * cosine[None, :] + q_other * sine[None, :]
        k = k * cosine + tl.gather(k, other, 0) * sine
    query = q.to(kind)
    if GQ < GP:  # heads repeat, whose scores nobody stores
        query = tl.broadcast_to(query[None, :, :], (GP // GQ, GQ, DP))
        query = tl.reshape(query, (GP, DP))
    g = tl.arange(0, GP)
    qm = (g < G)[:, None] & dm[None, :]
    q_at = (h * G + g)[:, None] * D + d[None, :]
    key_scales = scales + h * scales_row + start
    value_scales = key_scales + H * scales_row
    largest = tl.full((GP,), -1e30, tl.float32)
    total = tl.zeros((GP,), tl.float32)
    acc = tl.zeros((GP, DP), tl.float32)
    if split == 0:
        own = kv_cache + (start + n) * (2 * H * D) + columns
        kept_k = keep(k, own, key_scales + n, dm, IS_INT8)
        kept_v = keep(v, own + H * D, value_scales + n, dm, IS_INT8)
        largest = capped(tl.sum(query.to(tl.float32) * kept_k[None, :], 1) * scale, CAP)
        total += 1.0
        acc += kept_v[None, :]
    if PASS != 1:
        for first in range(begin, last, BLOCK_N):
            j = first + tl.arange(0, BLOCK_N)
            seen = j < last
            position = start + j
            if MERGED:
                position = tl.where(j < n, position, prompt_start + (j - n))
            at = (position * (2 * H * D))[:, None] + columns[None, :]
            both = seen[:, None] & dm[None, :]
            keys = tl.load(kv_cache + at, mask=both, other=0.0).to(kind)
            values = tl.load(kv_cache + at + H * D, mask=both, other=0.0).to(kind)
            scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
            scores = capped(scaled(scores, key_scales + (position - start), seen, 1, IS_INT8), CAP)
            scores = tl.where(seen[None, :], scores, -1e30)
            largest, total, shrink, p = softmax_step(scores, largest, total, AXIS=1)
            p = scaled(p, value_scales + (position - start), seen, 1, IS_INT8)
            acc = acc * shrink[:, None] + tl.dot(p.to(kind), values, input_precision="ieee")
        is_last = True
        if SPLITS > 1:
            is_last = used == 1
            if used > 1:
                row = (b * H + h).to(tl.int64)
                own_sums = sums + row * (SPLITS * 2 * GP) + g
                own_partials = partials + row * (SPLITS * G * D) + g[:, None] * D + d[None, :]
                tl.store(own_sums + split * (2 * GP), largest)
                tl.store(own_sums + split * (2 * GP) + GP, total)
                tl.store(own_partials + split * (G * D), acc, mask=qm)
                tl.debug_barrier()
                is_last = tl.atomic_add(counters + row, 1) == used - 1
                if is_last:
                    tl.store(counters + row, 0)
                    acc, total = _together(own_partials, own_sums, used, qm, G * D, GP, DP, SPLITS)
        if is_last:
            at_out = out + b * (H * G * D) + q_at
            tl.store(at_out, (acc / total[:, None]).to(out.dtype.element_ty), mask=qm)
