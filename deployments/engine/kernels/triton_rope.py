"""Norm and rotate heads of queries and keys with a Triton kernel. Imported only where it runs."""

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.backend import launch_options, overlaps
from deployments.engine.kernels.ops import HeadNorm, Rope
from deployments.engine.kernels.tiles import padded
from deployments.engine.kernels.triton_overlap import after_earlier_kernels, launch_next

_NUMBERS = 1024  # of one program


@triton.jit
def normed(x, inverse, weight, kind: tl.constexpr):
    """Return x * inverse * weight in float32, rounded to `kind` behind each product."""
    return ((x * inverse).to(kind).to(tl.float32) * weight).to(kind).to(tl.float32)


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
