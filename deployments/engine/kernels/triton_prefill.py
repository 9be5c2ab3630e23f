"""Norm and rotate the heads of all prompts of a step, and attend, with Triton kernels. Imported
only where they run.
"""

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.backend import launch_options, overlaps, shared_bytes
from deployments.engine.kernels.ops import BLOCK_M, HeadNorm, Rope
from deployments.engine.kernels.tiles import padded, prefill_tile
from deployments.engine.kernels.triton_decode import capped, softmax_step
from deployments.engine.kernels.triton_kv_cache import scaled, scales_arguments
from deployments.engine.kernels.triton_lora import normed
from deployments.engine.kernels.triton_overlap import after_earlier_kernels, launch_next

_NUMBERS = 1024  # of one program that rotates


@triton.jit
def _rotate_kernel(
    x, weight, eps, cos, sin, x_row, H: tl.constexpr, HP: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, ROT: tl.constexpr, HAS_NORM: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Norm and rotate HP of the H heads of a token in place. Program (token, heads)."""
    launch_next(OVERLAPS)
    token = tl.program_id(0).to(tl.int64)
    h = (tl.program_id(1) * HP + tl.arange(0, HP))[:, None]
    d = tl.arange(0, DP)[None, :]
    other = tl.where(d < ROT // 2, d + ROT // 2, d - ROT // 2)
    mask = (h < H) & (d < D)
    rotates = (h < H) & (d < ROT)
    if HAS_NORM:
        weights = tl.load(weight + h * D + d, mask=mask, other=0.0).to(tl.float32)
        other_weights = tl.load(weight + h * D + other, mask=rotates, other=0.0).to(tl.float32)
    after_earlier_kernels(OVERLAPS)
    line = x + token * x_row + h * D
    own = tl.load(line + d, mask=mask, other=0.0).to(tl.float32)
    swapped = tl.load(line + other, mask=rotates, other=0.0).to(tl.float32)
    kind = x.dtype.element_ty
    if HAS_NORM:
        inverse = (1.0 / tl.sqrt(tl.sum(own * own, 1) / D + eps))[:, None]
        own = normed(own, inverse, weights, kind)
        swapped = normed(swapped, inverse, other_weights, kind)
    if ROT > 0:
        cosine = tl.load(cos + token * ROT + d, mask=d < ROT, other=1.0).to(tl.float32)
        sine = tl.load(sin + token * ROT + d, mask=d < ROT, other=0.0).to(tl.float32)
        own = own * cosine + swapped * sine
    tl.debug_barrier()  # until every thread has read
    tl.store(line + d, own.to(kind), mask=mask)


@triton.jit
def _prefill_kernel(
    q, keys_values, blocks, bias, out, scale, q_row, kv_row, values_at, bias_row, bias_zero,
    scales, scales_row,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, HAS_BIAS: tl.constexpr, WINDOW: tl.constexpr,
    AHEAD: tl.constexpr, CAP: tl.constexpr, IS_INT8: tl.constexpr,
):  # fmt: skip
    """Attend with BLOCK_M queries of one prompt and one head. Program (block, head)."""
    line = blocks + tl.program_id(0) * 5
    count = tl.load(line + 1)
    if count == 0:
        return
    first_q = tl.load(line)
    position = tl.load(line + 2)
    first_kv = tl.load(line + 3).to(tl.int64)
    n = tl.load(line + 4)
    head = tl.program_id(1)
    i = tl.arange(0, BLOCK_M)
    im = i < count
    d = tl.arange(0, DP)
    dm = d < D
    qm = im[:, None] & dm[None, :]
    columns = head // G * D + d
    key_scales = scales + head // G * scales_row + first_kv
    value_scales = key_scales + H * scales_row
    query = tl.load(
        q + (first_q + i).to(tl.int64)[:, None] * q_row + head * D + d[None, :], mask=qm, other=0.0
    )
    largest = tl.full((BLOCK_M,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, DP), tl.float32)
    last = n
    if CAUSAL:
        last = tl.minimum(n, position + count)
    elif WINDOW > 0:
        last = tl.minimum(n, position + count + AHEAD)
    begin = 0
    if WINDOW > 0:
        # At a multiple, so that a query's keys lie in the same blocks in whatever piece it is read.
        begin = tl.maximum(position - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    for first in range(begin, last, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        seen = j < last
        both = seen[:, None] & dm[None, :]
        at = keys_values + (first_kv + j)[:, None] * kv_row + columns[None, :]
        keys = tl.load(at, mask=both, other=0.0).to(query.dtype)
        values = tl.load(at + values_at, mask=both, other=0.0).to(query.dtype)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = capped(scaled(scores, key_scales + j, seen, 1, IS_INT8), CAP)
        visible = seen[None, :] & im[:, None]
        if CAUSAL:
            visible = visible & (j[None, :] <= (position + i)[:, None])
        if WINDOW > 0:
            visible = visible & (j[None, :] > (position + i)[:, None] - WINDOW)
            if not CAUSAL:
                visible = visible & (j[None, :] <= (position + i)[:, None] + AHEAD)
        if HAS_BIAS:
            distance = j[None, :] - (position + i)[:, None] + bias_zero
            added = tl.load(bias + head * bias_row + distance, mask=visible, other=0.0)
            scores += added.to(tl.float32)
        scores = tl.where(visible, scores, -1e30)
        largest, total, shrink, p = softmax_step(scores, largest, total, AXIS=1)
        p = scaled(p, value_scales + j, seen, 1, IS_INT8)
        acc = acc * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
    tl.store(
        out + (first_q + i).to(tl.int64)[:, None] * (H * G * D) + head * D + d[None, :],
        (acc / total[:, None]).to(out.dtype.element_ty),
        mask=qm,
    )


def rotate_(x: torch.Tensor, norm: HeadNorm | None, rope: Rope | None) -> None:
    """Do ops.rotate_."""
    tokens, heads, dim = x.shape
    together = min(triton.next_power_of_2(heads), max(1, _NUMBERS // padded(dim)))
    weight, eps = (x, 0.0) if norm is None else (norm.weight, norm.eps)
    cos, sin = (x, x) if rope is None else (rope.cos, rope.sin)
    _rotate_kernel[tokens, triton.cdiv(heads, together)](
        x, weight, eps, cos, sin, x.stride(0), H=heads, HP=together, D=dim, DP=padded(dim),
        ROT=0 if rope is None else cos.shape[1], HAS_NORM=norm is not None,
        OVERLAPS=overlaps(x.device), num_warps=4, **launch_options(x.device),
    )  # fmt: skip


def prefill_attention(
    q: torch.Tensor,
    keys_values: torch.Tensor,
    *,
    blocks: torch.Tensor,
    kv_scales: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    scale: float,
    is_causal: bool,
    window: int | None = None,
    ahead: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend with the queries of many prompts at once, each over its own prompt.

    Args:
        q: (T, H * G, D).
        keys_values: (S, 2, H, D), a view whose last two dimensions are contiguous.
        blocks: (n, 5) int32 from `prompt_blocks`.
        kv_scales: (2, H, S), if keys and values are int8.
        bias: (H * G, 2 P - 1) added by key position - query position + P - 1, or None.
        window: each query sees that many positions at most, its own the last.
        ahead: and, if it is not causal, that many behind its own.
        softcap: scores s become softcap * tanh(s / softcap).

    Returns:
        (T, H * G * D); zeros for tokens that are in no block.
    """
    tokens, q_heads, dim = q.shape
    heads = keys_values.shape[2]
    out = torch.zeros(tokens, q_heads * dim, dtype=q.dtype, device=q.device)
    _prefill_kernel[len(blocks), q_heads](
        q, keys_values, blocks, q if bias is None else bias, out, scale,
        q.stride(0), keys_values.stride(0), keys_values.stride(1),
        0 if bias is None else bias.stride(0), 0 if bias is None else bias.shape[1] // 2,
        *scales_arguments(kv_scales, q),
        H=heads, G=q_heads // heads, D=dim, DP=padded(dim), BLOCK_M=BLOCK_M,
        CAUSAL=is_causal, HAS_BIAS=bias is not None, WINDOW=window or 0,
        AHEAD=ahead or 0, CAP=softcap or 0.0, IS_INT8=kv_scales is not None,
        **prefill_tile(dim, q.element_size(), BLOCK_M, shared_bytes(q.device)),
    )  # fmt: skip
    return out
