"""Multiply by LoRA weights, and gate activations, with Triton kernels.

The shapes depend only on the batch size, so the kernels can be captured in a CUDA graph. Imported
only where they run.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from deployments.engine.kernels.backend import launch_options, overlaps
from deployments.engine.kernels.ops import Expansion, rms_norm
from deployments.engine.kernels.triton_overlap import after_earlier_kernels, launch_next

_RANKS = 8  # ranks that one program takes together
_EXPAND_COLUMNS = 512
_GATED_COLUMNS = 1024
MAX_NORM_COLUMNS = 4096  # one program holds a whole row, times _RANKS


@triton.jit
def _shrink_kernel(
    x, a0, a1, a2, slots, out, x_row, K,
    P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Compute RC ranks of one module of one row. Program (b, module and ranks)."""
    launch_next(OVERLAPS)
    after_earlier_kernels(OVERLAPS)
    b = tl.program_id(0)
    module = tl.program_id(1) // (R // RC)
    r = tl.program_id(1) % (R // RC) * RC + tl.arange(0, RC)
    slot = tl.load(slots + b).to(tl.int64)
    acc = tl.zeros((RC,), tl.float32)
    if slot != 0:
        a = a0
        if module == 1:
            a = a1
        if module == 2:
            a = a2
        for first in range(0, K, BLOCK):
            k = first + tl.arange(0, BLOCK)
            km = k < K
            xs = tl.load(x + b * x_row + k, mask=km, other=0.0).to(tl.float32)
            at = a + slot * (R * K) + r[:, None] * K + k[None, :]
            weights = tl.load(at, mask=km[None, :], other=0.0).to(tl.float32)
            acc += tl.sum(weights * xs[None, :], 1)
    tl.store(out + (b * P + module) * R + r, acc)


@triton.jit
def _norm_shrink_kernel(
    x, weight, normed, a0, a1, a2, slots, out, eps, K,
    P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, BLOCK: tl.constexpr,
    OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Compute _shrink_kernel of a row's RMS norm, which each program computes itself.

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
    scales = tl.load(weight + k, mask=km, other=0.0).to(tl.float32)
    after_earlier_kernels(OVERLAPS)
    xs = tl.load(x + b * K + k, mask=km, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(xs * xs, 0) / K + eps)
    kind = normed.dtype.element_ty
    ys = ((xs * inverse).to(kind).to(tl.float32) * scales).to(kind)
    if tl.program_id(1) == 0:
        tl.store(normed + b * K + k, ys, mask=km)
    acc = tl.sum(weights.to(tl.float32) * ys.to(tl.float32)[None, :], 1)
    tl.store(out + (b * P + module) * R + r, acc)


@triton.jit
def _norm_kernel(x, weight, out, eps, K, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    """Compute the RMS norm of a row. Program (b)."""
    launch_next(OVERLAPS)
    at = tl.program_id(0).to(tl.int64) * K
    k = tl.arange(0, BLOCK)
    km = k < K
    scales = tl.load(weight + k, mask=km, other=0.0)
    after_earlier_kernels(OVERLAPS)
    xs = tl.load(x + at + k, mask=km, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(xs * xs, 0) / K + eps)
    kind = out.dtype.element_ty
    scaled = (xs * inverse).to(kind).to(tl.float32)
    ys = scaled * scales.to(tl.float32)
    tl.store(out + at + k, ys.to(kind), mask=km)


@triton.jit
def _expand_kernel(
    y, shrunk, b0, b1, b2, g0, g1, g2, start0, start1, start2, n0, n1, n2, slots, y_row,
    P: tl.constexpr, R: tl.constexpr, RC: tl.constexpr, BLOCK: tl.constexpr, G0: tl.constexpr,
    G1: tl.constexpr, G2: tl.constexpr, OVERLAPS: tl.constexpr,
):  # fmt: skip
    """Add to BLOCK columns of one module of one row. Program (b, columns, module).

    G0 to G2: whether the columns of that module are multiplied by gains first.
    """
    launch_next(OVERLAPS)
    after_earlier_kernels(OVERLAPS)
    b = tl.program_id(0)
    module = tl.program_id(2)
    stack = b0
    gains = g0
    start = start0
    n = n0
    has_gains = G0
    if module == 1:
        stack = b1
        gains = g1
        start = start1
        n = n1
        has_gains = G1
    if module == 2:
        stack = b2
        gains = g2
        start = start2
        n = n2
        has_gains = G2
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    cm = c < n
    slot = tl.load(slots + b).to(tl.int64)
    if slot != 0:
        acc = tl.zeros((BLOCK,), tl.float32)
        for first in tl.static_range(0, R, RC):
            r = first + tl.arange(0, RC)
            s = tl.load(shrunk + (b * P + module) * R + r)
            at = stack + slot * (R * n) + r[:, None] * n + c[None, :]
            weights = tl.load(at, mask=cm[None, :], other=0.0).to(tl.float32)
            acc += tl.sum(weights * s[:, None], 0)
        at_y = y + b * y_row + start + c
        old = tl.load(at_y, mask=cm, other=0.0).to(tl.float32)
        if has_gains:
            old *= tl.load(gains + slot * n + c, mask=cm, other=0.0)
        tl.store(at_y, (old + acc).to(y.dtype.element_ty), mask=cm)


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


def lora_shrink(
    x: torch.Tensor, stacks: Sequence[torch.Tensor], slots: torch.Tensor
) -> torch.Tensor:
    """Multiply each row by its own A, for the 1 to 3 modules of a layer at once.

    x (B, in), each module's stack (N, R, in) with zeros in slot 0, slots (B,) -> (B, P, R) float32.
    """
    modules, rank = len(stacks), stacks[0].shape[1]
    out = torch.empty(len(x), modules, rank, dtype=torch.float32, device=x.device)
    grid = (len(x), modules * (rank // _RANKS))
    _shrink_kernel[grid](
        x, *three(stacks), slots, out, x.stride(0), x.shape[1],
        P=modules, R=rank, RC=_RANKS, BLOCK=min(2048, triton.next_power_of_2(x.shape[1])),
        OVERLAPS=overlaps(x.device), num_warps=8, **launch_options(x.device),
    )  # fmt: skip
    return out


def norm_shrink(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    stacks: Sequence[torch.Tensor],
    slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rms_norm(x)` (B, d) and `lora_shrink` of it (B, P, R), from one kernel."""
    if x.shape[1] > MAX_NORM_COLUMNS:
        normed = rms_norm(x, weight, eps)
        return normed, lora_shrink(normed, stacks, slots)
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


def rms_norm_rows(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute ops.rms_norm, rounding as `norm_shrink` does."""
    out = torch.empty_like(x)
    _norm_kernel[(len(x),)](
        x, weight, out, eps, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]),
        OVERLAPS=overlaps(x.device), num_warps=8, **launch_options(x.device),
    )  # fmt: skip
    return out


def lora_expand_add(
    y: torch.Tensor, expansion: Expansion, gains: Sequence[torch.Tensor | None] = ()
) -> None:
    """Add the expansion to y (B, out) in place; y's rows must be contiguous.

    gains: of each module (N, columns) float32, by which its columns of y are multiplied first; ().
    """
    shrunk, stacks, slots = expansion.shrunk, expansion.stacks, expansion.slots
    tensors = [b for _, b in stacks]
    factors = list(gains) or [None] * len(stacks)
    has_gains = [factor is not None for factor in factors]
    columns = [b.shape[2] for b in tensors]
    grid = (len(y), triton.cdiv(max(columns), _EXPAND_COLUMNS), len(stacks))
    _expand_kernel[grid](
        y, shrunk, *three(tensors), *three([shrunk if f is None else f for f in factors]),
        *three([start for start, _ in stacks]), *three(columns),
        slots, y.stride(0),
        P=len(stacks), R=tensors[0].shape[1], RC=_RANKS, BLOCK=_EXPAND_COLUMNS,
        OVERLAPS=overlaps(y.device), num_warps=4, **launch_options(y.device),
        **dict(zip(("G0", "G1", "G2"), three(has_gains), strict=True)),
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


def three(items: Sequence[Any]) -> list[Any]:
    """Return three items, since the kernels take three; missing ones repeat the first, unread."""
    if not 1 <= len(items) <= 3:
        raise ValueError(f"{len(items)} modules in one product; 1 to 3 are possible")
    return [*items, items[0], items[0]][:3]
