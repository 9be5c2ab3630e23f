"""Norm rows, multiply each by a few LoRA weights, add these to a row, and gate activations, with
Triton kernels.

The shapes depend only on the batch size, so the kernels can be captured in a CUDA graph. Imported
only where they run.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.backend import launch_options, overlaps
from deployments.engine.kernels.ops import Expansion
from deployments.engine.kernels.triton_groups import three
from deployments.engine.kernels.triton_overlap import after_earlier_kernels, launch_next

_RANKS = 8  # ranks that one program takes together
_NUMBERS_AHEAD = 1 << 16  # of B, which a program asks for before earlier kernels end
_GATED_COLUMNS = 1024
MAX_NORM_COLUMNS = 4096  # one program holds a whole row, times _RANKS


@triton.jit
def normed(x, inverse, weight, kind: tl.constexpr):
    """Return x * inverse * weight in float32, rounded to `kind` behind each product."""
    return ((x * inverse).to(kind).to(tl.float32) * weight).to(kind).to(tl.float32)


@triton.jit
def _row_norm(xs, weight, eps, K, kind: tl.constexpr):
    """Return the RMS norm of a row of K numbers in float32, rounded to `kind`."""
    inverse = 1.0 / tl.sqrt(tl.sum(xs * xs, 0) / K + eps)
    return normed(xs, inverse, weight.to(tl.float32), kind)


@triton.jit
def _norm_shrink_kernel(
    x, weight, out, a0, a1, a2, slots, shrunk, eps, K,
    P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Compute RC ranks of one module of a row's RMS norm, which each program computes itself.
    Program (b, module and ranks).

    What no kernel writes is read before earlier kernels end.
    """
    launch_next(OVERLAPS)
    b = tl.program_id(0)
    module = tl.program_id(1) // (R // RC)
    r = tl.program_id(1) % (R // RC) * RC + tl.arange(0, RC)
    k = tl.arange(0, BLOCK)
    km = k < K
    slot = tl.load(slots + b).to(tl.int64)
    a = a0
    if module == 1:
        a = a1
    if module == 2:
        a = a2
    at = a + slot * (R * K) + r[:, None] * K + k[None, :]
    weights = tl.load(at, mask=km[None, :] & (slot != 0), other=0.0)
    scales = tl.load(weight + k, mask=km, other=0.0)
    after_earlier_kernels(OVERLAPS)
    xs = tl.load(x + b * K + k, mask=km, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    ys = _row_norm(xs, scales, eps, K, kind)
    if tl.program_id(1) == 0:
        tl.store(out + b * K + k, ys.to(kind), mask=km)
    acc = tl.sum(weights.to(tl.float32) * ys[None, :], 1)
    tl.store(shrunk + (b * P + module) * R + r, acc)


@triton.jit
def _norm_kernel(x, weight, out, eps, x_row, K, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    """Compute the RMS norm of a row, perhaps in place: `out` has rows as far apart. Program (b)."""
    launch_next(OVERLAPS)
    at = tl.program_id(0).to(tl.int64) * x_row
    k = tl.arange(0, BLOCK)
    km = k < K
    scales = tl.load(weight + k, mask=km, other=0.0)
    after_earlier_kernels(OVERLAPS)
    xs = tl.load(x + at + k, mask=km, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(out + at + k, _row_norm(xs, scales, eps, K, kind).to(kind), mask=km)


@triton.jit
def _expand_norm_kernel(
    x, shrunk, stack, slots, weight, out, eps, K, R: tl.constexpr, AHEAD: tl.constexpr,
    BLOCK: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Add a row's B to it in place, then compute its RMS norm. Program (b).

    AHEAD: ranks of B, and the norm's weight, are read before earlier kernels end.
    """
    launch_next(OVERLAPS)
    b = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    km = k < K
    slot = tl.load(slots + b).to(tl.int64)
    has_one = km & (slot != 0)
    rows = stack + slot * (R * K) + k
    weights = ranks_ahead(rows, K, has_one, AHEAD)
    scales = tl.load(weight + k, mask=km, other=0.0)
    after_earlier_kernels(OVERLAPS)
    xs = tl.load(x + b * K + k, mask=km, other=0.0).to(tl.float32)
    added = tl.zeros((BLOCK,), tl.float32)
    added = add_ranks(added, weights, rows, K, has_one, shrunk + b * R, R, AHEAD)
    kind = out.dtype.element_ty
    sums = (xs + added).to(kind)
    tl.store(x + b * K + k, sums, mask=km)
    ys = _row_norm(sums.to(tl.float32), scales, eps, K, kind)
    tl.store(out + b * K + k, ys.to(kind), mask=km)


@triton.jit
def activated(gate, IS_SILU: tl.constexpr):
    """Return SiLU or the tanh form of GELU, x * sigmoid(2 z), of float32."""
    z = gate
    if not IS_SILU:
        z = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    return gate / (1.0 + tl.exp(-tl.maximum(z, -80.0)))  # exp stays finite


@triton.jit
def _gated_kernel(x, out, F, IS_SILU: tl.constexpr, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    """Compute BLOCK columns of one row. Program (row, columns)."""
    launch_next(OVERLAPS)
    after_earlier_kernels(OVERLAPS)
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = c < F
    gate = tl.load(x + b * 2 * F + c, mask=m, other=0.0).to(tl.float32)
    value = tl.load(x + b * 2 * F + F + c, mask=m, other=0.0)
    acted = activated(gate, IS_SILU).to(out.dtype.element_ty)
    product = acted.to(tl.float32) * value.to(tl.float32)
    tl.store(out + b * F + c, product.to(out.dtype.element_ty), mask=m)


@triton.jit
def ranks_ahead(rows, step, mask, AHEAD: tl.constexpr):
    """Return the first AHEAD ranks of a B, as `rows` points to one; the next is `step` further."""
    weights = ()
    for r in tl.static_range(AHEAD):
        weights = weights + (tl.load(rows + r * step, mask=mask, other=0.0),)
    return weights


@triton.jit
def add_ranks(x, weights, rows, step, mask, shrunk, R: tl.constexpr, AHEAD: tl.constexpr):
    """Return x plus what R ranks add, of which `ranks_ahead` gave the first. shrunk: (R,)."""
    for r in tl.static_range(AHEAD):
        x += tl.load(shrunk + r) * weights[r].to(tl.float32)
    for r in range(AHEAD, R):
        more = tl.load(rows + r * step, mask=mask, other=0.0)
        x += tl.load(shrunk + r) * more.to(tl.float32)
    return x


@triton.jit
def stack_rows(stack, columns, mask, slot, first, N, R: tl.constexpr, RC: tl.constexpr):
    """Return RC ranks of a slot's B, from `first` on, at these columns."""
    r = first + tl.arange(0, RC)
    at = stack + slot * (R * N) + r[:, None] * N + columns[None, :]
    return tl.load(at, mask=mask[None, :], other=0.0)


@triton.jit
def add_lora(
    x, weights, columns, mask, shrunk, stack, slot, row, N,
    R: tl.constexpr, RC: tl.constexpr, P: tl.constexpr, MODULE: tl.constexpr,
):  # fmt: skip
    """Return x (D,) plus what the row's adapter adds to these columns of one module, of whose B
    `weights` are the first RC ranks."""
    for first in tl.static_range(0, R, RC):
        if first > 0:
            weights = stack_rows(stack, columns, mask, slot, first, N, R, RC)
        s = tl.load(shrunk + (row * P + MODULE) * R + first + tl.arange(0, RC))
        x += tl.sum(weights.to(tl.float32) * s[:, None], 0)
    return x


def norm_shrink(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    stacks: Sequence[torch.Tensor],
    slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rms_norm(x)` (B, d) and each row's product with its own A (B, P, R), from one kernel.

    d is at most MAX_NORM_COLUMNS.
    """
    modules, rank = len(stacks), stacks[0].shape[1]
    normed = torch.empty_like(x)
    out = torch.empty(len(x), modules, rank, dtype=torch.float32, device=x.device)
    grid = (len(x), modules * (rank // _RANKS))
    _norm_shrink_kernel[grid](
        x, weight, normed, *three(stacks), slots, out, eps, x.shape[1],
        P=modules, R=rank, RC=_RANKS, BLOCK=triton.next_power_of_2(x.shape[1]),
        OVERLAPS=overlaps(x.device), num_warps=16, **launch_options(x.device),
    )  # fmt: skip
    return normed, out


def expand_norm(
    x: torch.Tensor, expansion: Expansion, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add an expansion of one module to x (B, d) in place, and return ops.rms_norm of the sum."""
    ((_, stack),) = expansion.stacks
    out, block = torch.empty_like(x), triton.next_power_of_2(x.shape[1])
    _expand_norm_kernel[(len(x),)](
        x, expansion.shrunk, stack, expansion.slots, weight, out, eps, x.shape[1],
        R=expansion.rank, AHEAD=min(expansion.rank, _NUMBERS_AHEAD // block),
        BLOCK=block, OVERLAPS=overlaps(x.device), num_warps=16,
        **launch_options(x.device),
    )  # fmt: skip
    return out


def rms_norm_rows(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute ops.rms_norm, rounding as `norm_shrink` does."""
    out = torch.empty_like(x)
    _norm(x, weight, eps, out)
    return out


def normalise_(x: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """Do ops.normalise_."""
    rows = x.view(len(x), -1)
    _norm(rows, weight, eps, rows)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> None:
    assert x.stride() == out.stride(), "rows that lie in another way"
    _norm_kernel[(len(x),)](
        x, weight, out, eps, x.stride(0), x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]),
        OVERLAPS=overlaps(x.device), num_warps=8, **launch_options(x.device),
    )  # fmt: skip


def gated_activation(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Compute ops.gated_activation for an activation of ops.GATED."""
    width = x.shape[1] // 2
    out = torch.empty(len(x), width, dtype=x.dtype, device=x.device)
    grid = (len(x), triton.cdiv(width, _GATED_COLUMNS))
    _gated_kernel[grid](
        x, out, width, IS_SILU=activation == "silu", BLOCK=_GATED_COLUMNS,
        OVERLAPS=overlaps(x.device), num_warps=4, **launch_options(x.device),
    )  # fmt: skip
    return out
