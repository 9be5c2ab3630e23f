"""Run norms and activations, for which torch's own functions are slow on a CPU or a GPU."""

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F

from deployments.engine.kernels.backend import are_fused

_tanh_gelu = functools.partial(F.gelu, approximate="tanh")
# The keys are transformers' names.
ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
}


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
    gated = _gated_kernels() if are_fused(x.device.type) else {}
    if activation in gated:
        return gated[activation](x)
    return gated_activation_torch(x, activation)


def gated_activation_torch(x: torch.Tensor, activation: str) -> torch.Tensor:
    gate, value = x.chunk(2, -1)
    return ACTIVATIONS[activation](gate).mul_(value)


@functools.cache
def _gated_kernels() -> Mapping[str, Callable[[torch.Tensor], torch.Tensor]]:
    from deployments.engine.kernels.triton_lora import GATED, gated_activation

    return {name: functools.partial(gated_activation, activation=name) for name in GATED}
