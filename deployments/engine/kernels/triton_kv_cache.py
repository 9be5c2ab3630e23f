"""Keep keys and values in the KV cache with Triton kernels, in int8 too. Imported only where they
run.

An int8 cache holds numbers from -127 to 127 and, for each position and head, one scale for its key
and one for its value (attention/int8_kv_cache.py, which is the same in torch).
"""

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.tiles import padded

_HEADS = 16  # of one program


@triton.jit
def _quantised(x, AXIS: tl.constexpr):
    """Return x / scale as whole numbers, and the scale of each line of x along AXIS, in float32.

    The scale is rounded up to bfloat16, so that no number is above 127.
    """
    bits = (tl.max(tl.abs(x), AXIS) * (1.0 / 127.0)).to(tl.uint32, bitcast=True)
    scale = (((bits + 0xFFFF) >> 16) << 16).to(tl.float32, bitcast=True)
    divisor = tl.where(scale > 0.0, scale, 1.0)
    whole = tl.floor(x / (divisor[:, None] if AXIS == 1 else divisor) + 0.5)
    return whole, scale


@triton.jit
def keep(x, at, scale_at, mask, IS_INT8: tl.constexpr):
    """Store x (D,), a head's key or value, as the cache keeps it; return what is read from there
    later, in float32."""
    kind = at.dtype.element_ty
    if IS_INT8:
        whole, scale = _quantised(x, AXIS=0)
        tl.store(at, whole.to(kind), mask=mask)
        tl.store(scale_at, scale.to(scale_at.dtype.element_ty))
        kept = whole * scale
    else:
        tl.store(at, x.to(kind), mask=mask)
        kept = x.to(kind).to(tl.float32)
    return kept


@triton.jit
def scaled(x, scales_at, seen, AXIS: tl.constexpr, IS_INT8: tl.constexpr):
    """Return x, (BLOCK_N,) with AXIS 0 or (M, BLOCK_N) with AXIS 1, times the scale of each key."""
    if IS_INT8:
        scales = tl.load(scales_at, mask=seen, other=0.0).to(tl.float32)
        x = x * (scales[None, :] if AXIS == 1 else scales)
    return x


@triton.jit
def _write_kernel(
    kv, kv_cache, scales, positions, kv_row, scales_row, H: tl.constexpr, HP: tl.constexpr,
    D: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """Keep HP of the H keys and values of a token. Program (token, heads)."""
    token = tl.program_id(0)
    position = tl.load(positions + token)
    h = tl.program_id(1) * HP + tl.arange(0, HP)
    d = tl.arange(0, DP)
    both = (h < H)[:, None] & (d < D)[None, :]
    columns = h[:, None] * D + d[None, :]
    x = tl.load(kv + token.to(tl.int64) * kv_row + columns, mask=both, other=0.0).to(tl.float32)
    whole, scale = _quantised(x, AXIS=1)
    kind = scales.dtype.element_ty
    tl.store(kv_cache + position * (H * D) + columns, whole.to(tl.int8), mask=both)
    tl.store(scales + h * scales_row + position, scale.to(kind), mask=h < H)


def scales_arguments(scales: torch.Tensor | None, unused: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return what a kernel takes as `scales` (2, H, T) and `scales_row`."""
    return (unused, 0) if scales is None else (scales, scales.stride(1))


def write_int8(
    kv_cache: torch.Tensor, scales: torch.Tensor, positions: torch.Tensor, kv: torch.Tensor
) -> None:
    """Write kv (n, 2, H, D), whose last three dimensions are contiguous, to positions (n,) of an
    int8 cache (T, 2, H, D) with scales (2, H, T)."""
    heads, dim = 2 * kv.shape[2], kv.shape[3]
    _write_kernel[len(kv), triton.cdiv(heads, _HEADS)](
        kv, kv_cache, scales, positions, kv.stride(0), scales.stride(1),
        H=heads, HP=_HEADS, D=dim, DP=padded(dim), num_warps=4,
    )  # fmt: skip
