"""Triton kernels behind kernels.py, which says what each computes. Imported only where they run."""

import torch
import triton
import triton.language as tl

_ATTENTION_BLOCK = 64
_SHRINK_RANKS = 8  # ranks that one program computes
_EXPAND_COLUMNS = 256


@triton.jit
def _attention_kernel(
    q,
    memory,
    starts,
    lengths,
    bias,
    out,
    scale,
    q_row,
    q_head,
    bias_row,
    H: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """One query head for each key/value head. Program (h, b)."""
    h = tl.program_id(0)
    b = tl.program_id(1)
    n = tl.load(lengths + b)
    start = tl.load(starts + b).to(tl.int64)
    d = tl.arange(0, DP)
    dm = d < D
    query = tl.load(q + b * q_row + h * q_head + d, mask=dm, other=0.0).to(tl.float32) * scale
    largest = -1e30
    total = 0.0
    acc = tl.zeros((DP,), tl.float32)
    for first in range(0, n, BLOCK):
        j = first + tl.arange(0, BLOCK)
        seen = j < n
        at = (start + j) * (2 * H * D) + h * D
        both = seen[:, None] & dm[None, :]
        keys = tl.load(memory + at[:, None] + d[None, :], mask=both, other=0.0)
        scores = tl.sum(query[None, :] * keys.to(tl.float32), 1)
        if HAS_BIAS:
            added = tl.load(bias + h * bias_row + (n - 1 - j), mask=seen, other=0.0)
            scores += added.to(tl.float32)
        scores = tl.where(seen, scores, -1e30)
        now = tl.maximum(largest, tl.max(scores, 0))
        shrink = tl.exp(largest - now)
        p = tl.exp(scores - now)
        values = tl.load(memory + at[:, None] + (H * D + d)[None, :], mask=both, other=0.0)
        total = total * shrink + tl.sum(p, 0)
        acc = acc * shrink + tl.sum(p[:, None] * values.to(tl.float32), 0)
        largest = now
    tl.store(out + (b * H + h) * D + d, (acc / total).to(out.dtype.element_ty), mask=dm)


@triton.jit
def _grouped_attention_kernel(
    q,
    memory,
    starts,
    lengths,
    out,
    scale,
    q_row,
    q_head,
    q_group,
    H: tl.constexpr,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """G query heads share a key/value head: tl.dot over GP >= 16 padded heads. Program (h, b)."""
    h = tl.program_id(0)
    b = tl.program_id(1)
    n = tl.load(lengths + b)
    start = tl.load(starts + b).to(tl.int64)
    g = tl.arange(0, GP)
    d = tl.arange(0, DP)
    gm = g < G
    dm = d < D
    q_at = q + b * q_row + h * q_head + g[:, None] * q_group + d[None, :]
    query = tl.load(q_at, mask=gm[:, None] & dm[None, :], other=0.0)
    largest = tl.full((GP,), -1e30, tl.float32)
    total = tl.zeros((GP,), tl.float32)
    acc = tl.zeros((GP, DP), tl.float32)
    for first in range(0, n, BLOCK):
        j = first + tl.arange(0, BLOCK)
        seen = j < n
        at = (start + j) * (2 * H * D) + h * D
        both = seen[:, None] & dm[None, :]
        keys = tl.load(memory + at[:, None] + d[None, :], mask=both, other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, -1e30)
        now = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp(largest - now)
        p = tl.exp(scores - now[:, None])
        values = tl.load(memory + at[:, None] + (H * D + d)[None, :], mask=both, other=0.0)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        largest = now
    out_at = out + (b * H * G + h * G + g)[:, None] * D + d[None, :]
    result = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out_at, result, mask=gm[:, None] & dm[None, :])


@triton.jit
def _shrink_kernel(
    x,
    a,
    slots,
    out,
    x_row,
    K,
    R: tl.constexpr,
    RC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """RC ranks of one row. Program (b, ranks)."""
    b = tl.program_id(0)
    r = tl.program_id(1) * RC + tl.arange(0, RC)
    slot = tl.load(slots + b).to(tl.int64)
    acc = tl.zeros((RC,), tl.float32)
    for first in range(0, K, BLOCK):
        k = first + tl.arange(0, BLOCK)
        km = k < K
        xs = tl.load(x + b * x_row + k, mask=km, other=0.0).to(tl.float32)
        at = a + slot * (R * K) + r[:, None] * K + k[None, :]
        weights = tl.load(at, mask=km[None, :], other=0.0).to(tl.float32)
        acc += tl.sum(weights * xs[None, :], 1)
    tl.store(out + b * R + r, acc)


@triton.jit
def _expand_kernel(
    y,
    shrunk,
    b_stack,
    slots,
    y_row,
    N,
    R: tl.constexpr,
    RC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK columns of one row. Program (b, columns)."""
    b = tl.program_id(0)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    cm = c < N
    slot = tl.load(slots + b).to(tl.int64)
    if slot != 0:
        acc = tl.zeros((BLOCK,), tl.float32)
        for first in tl.static_range(0, R, RC):
            r = first + tl.arange(0, RC)
            s = tl.load(shrunk + b * R + r)
            at = b_stack + slot * (R * N) + r[:, None] * N + c[None, :]
            weights = tl.load(at, mask=cm[None, :], other=0.0).to(tl.float32)
            acc += tl.sum(weights * s[:, None], 0)
        at_y = y + b * y_row + c
        old = tl.load(at_y, mask=cm, other=0.0).to(tl.float32)
        tl.store(at_y, (old + acc).to(y.dtype.element_ty), mask=cm)


def decode_attention(
    q: torch.Tensor,
    memory: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    rows, heads, groups, dim = q.shape
    out = torch.empty(rows, heads * groups * dim, dtype=q.dtype, device=q.device)
    padded = max(16, triton.next_power_of_2(dim))
    grid = (heads, rows)
    if groups == 1:
        _attention_kernel[grid](
            q, memory, starts, lengths, q if bias is None else bias, out, scale,
            q.stride(0), q.stride(1), 0 if bias is None else bias.stride(0),
            H=heads, D=dim, DP=padded, BLOCK=_ATTENTION_BLOCK, HAS_BIAS=bias is not None,
            num_warps=4,
        )  # fmt: skip
        return out
    if bias is not None:
        raise ValueError(f"a bias with {groups} query heads for each key/value head: only 1")
    _grouped_attention_kernel[grid](
        q, memory, starts, lengths, out, scale,
        q.stride(0), q.stride(1), q.stride(2),
        H=heads, G=groups, GP=max(16, triton.next_power_of_2(groups)), D=dim, DP=padded,
        BLOCK=_ATTENTION_BLOCK, num_warps=4,
    )  # fmt: skip
    return out


def lora_shrink(x: torch.Tensor, a: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    rank = a.shape[1]
    out = torch.empty(len(x), rank, dtype=torch.float32, device=x.device)
    grid = (len(x), rank // _SHRINK_RANKS)
    _shrink_kernel[grid](
        x, a, slots, out, x.stride(0), x.shape[1],
        R=rank, RC=_SHRINK_RANKS, BLOCK=min(1024, triton.next_power_of_2(x.shape[1])), num_warps=4,
    )  # fmt: skip
    return out


def lora_expand_add(
    y: torch.Tensor, shrunk: torch.Tensor, b: torch.Tensor, slots: torch.Tensor
) -> None:
    rank, columns = b.shape[1:]
    grid = (len(y), triton.cdiv(columns, _EXPAND_COLUMNS))
    _expand_kernel[grid](
        y, shrunk, b, slots, y.stride(0), columns,
        R=rank, RC=_SHRINK_RANKS, BLOCK=_EXPAND_COLUMNS, num_warps=4,
    )  # fmt: skip
