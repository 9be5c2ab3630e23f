"""Run the operations of a decode step for which torch has no fast kernel: LoRA, norm, activation.

On a CUDA device with Triton, each is one kernel whose shapes depend only on the batch size, so it
can be captured in a CUDA graph. Elsewhere the `*_torch` version runs. A test compares the two, on
a GPU or in Triton's interpreter (TRITON_INTERPRET=1).
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import torch
import torch.nn.functional as F

from deployments.engine.kernels.types import Expansion

_INTERPRET = "TRITON_INTERPRET"
_tanh_gelu = functools.partial(F.gelu, approximate="tanh")
# The keys are transformers' names.
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}


def lora_shrink(
    x: torch.Tensor, stacks: Sequence[torch.Tensor], slots: torch.Tensor
) -> torch.Tensor:
    """Multiply each row by its own A, for the 1 to 3 modules of a layer at once.

    Args:
        x: (B, in).
        stacks: for each module (N, R, in), with zeros in slot 0.
        slots: (B,).

    Returns:
        (B, P, R) in float32
    """
    triton_lora = _triton(x.device.type)
    if triton_lora is None:
        return lora_shrink_torch(x, stacks, slots)
    out: torch.Tensor = triton_lora.lora_shrink(x, stacks, slots)
    return out


def norm_shrink(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    stacks: Sequence[torch.Tensor],
    slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rms_norm(x)` (B, d) and `lora_shrink` of it (B, P, R), from one kernel."""
    triton_lora = _triton(x.device.type)
    if triton_lora is None or x.shape[1] > triton_lora.MAX_NORM_COLUMNS:
        normed = rms_norm(x, weight, eps)
        return normed, lora_shrink(normed, stacks, slots)
    out: tuple[torch.Tensor, torch.Tensor] = triton_lora.norm_shrink(x, weight, eps, stacks, slots)
    return out


def lora_shrink_torch(
    x: torch.Tensor, stacks: Sequence[torch.Tensor], slots: torch.Tensor
) -> torch.Tensor:
    products = [torch.bmm(a[slots].float(), x.float().unsqueeze(2)).squeeze(2) for a in stacks]
    return torch.stack(products, 1)


def lora_expand_add(y: torch.Tensor, expansion: Expansion) -> None:
    """Add the expansion to y (B, out) in place; y's rows must be contiguous."""
    triton_lora = _triton(y.device.type)
    if triton_lora is None:
        lora_expand_add_torch(y, expansion)
    else:
        triton_lora.lora_expand_add(y, expansion)


def lora_expand_add_torch(y: torch.Tensor, expansion: Expansion) -> None:
    for i, (start, b) in enumerate(expansion.stacks):
        shrunk = expansion.shrunk[:, i, None]
        added = torch.bmm(shrunk, b[expansion.slots].float()).squeeze(1)
        y[:, start : start + b.shape[2]] += added.to(y.dtype)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the RMS norm of x (T, d) with weight (d,); the mean square is taken in float32.

    On a CPU this takes five small operations instead of the nine of torch's own.
    """
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight, eps)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = length.square_().div_(x.shape[1]).add_(eps).rsqrt_()
    normed: torch.Tensor = (x * inverse).to(x.dtype)
    return normed.mul_(weight)


def gated_activation(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Return act(gate) * value (T, F) of x (T, 2 F), which holds gate and value side by side."""
    triton_lora = _triton(x.device.type)
    if triton_lora is None or activation not in triton_lora.GATED:
        return gated_activation_torch(x, activation)
    out: torch.Tensor = triton_lora.gated_activation(x, activation)
    return out


def gated_activation_torch(x: torch.Tensor, activation: str) -> torch.Tensor:
    gate, value = x.chunk(2, -1)
    return ACTIVATIONS[activation](gate).mul_(value)


@functools.cache
def are_fused(device_type: str) -> bool:
    """Return whether the Triton kernels, not the torch versions, run on this type of device."""
    runs = device_type == "cuda" or os.environ.get(_INTERPRET) == "1"
    return runs and importlib.util.find_spec("triton") is not None


@functools.cache
def _triton(device_type: str) -> ModuleType | None:
    """Return the Triton kernels. Returns None where they do not run."""
    if not are_fused(device_type):
        return None
    from deployments.engine.kernels import triton_lora

    return triton_lora
