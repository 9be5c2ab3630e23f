"""The operations of a decode step that torch has no fast kernel for, each with a PyTorch twin.

On a CUDA device with Triton they are one kernel each, whose shapes depend on nothing but the batch
size: they can be captured in a CUDA graph. Elsewhere the twin runs. A test compares the two, on a
GPU or in Triton's interpreter (TRITON_INTERPRET=1).
"""

import functools
import importlib.util
import os
from types import ModuleType

import torch

_INTERPRET = "TRITON_INTERPRET"


def decode_attention(
    q: torch.Tensor,
    memory: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """One query position of each row over positions [start, start + length) of the memory.

    Args:
        q: (B, H, G, D), G query heads for each key/value head.
        memory: (T, 2, H, D) keys and values.
        starts, lengths: (B,); a length of at least 1.
        bias: (H, S) added by distance from the last position (then G is 1), or None.

    Returns:
        (B, H * G * D)
    """
    triton_kernels = _triton(q.device.type)
    if triton_kernels is None:
        return decode_attention_twin(q, memory, starts, lengths, bias, scale)
    out: torch.Tensor = triton_kernels.decode_attention(q, memory, starts, lengths, bias, scale)
    return out


def decode_attention_twin(
    q: torch.Tensor,
    memory: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """As `decode_attention`, gathering every row to the longest length."""
    longest = int(lengths.max())
    at = torch.arange(longest, device=q.device)
    hidden = at >= lengths[:, None]
    rows = (starts[:, None] + at).masked_fill(hidden, 0)
    keys, values = memory[rows].permute(2, 0, 3, 1, 4)  # (B, H, L, D)
    scores = torch.matmul(q, keys.transpose(2, 3)) * scale
    if bias is not None:
        distance = (lengths[:, None] - 1 - at).clamp(min=0)
        scores = scores + bias[:, distance].transpose(0, 1).unsqueeze(2)
    scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
    weights = scores.float().softmax(-1).to(q.dtype)
    return torch.matmul(weights, values).reshape(len(q), -1)


def lora_shrink(x: torch.Tensor, a: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """x (B, in), a (N, R, in), slots (B,) -> (B, R) in float32: each row through its own A."""
    triton_kernels = _triton(x.device.type)
    if triton_kernels is None:
        return lora_shrink_twin(x, a, slots)
    out: torch.Tensor = triton_kernels.lora_shrink(x, a, slots)
    return out


def lora_shrink_twin(x: torch.Tensor, a: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    return torch.bmm(a[slots].float(), x.float().unsqueeze(2)).squeeze(2)


def lora_expand_add(
    y: torch.Tensor, shrunk: torch.Tensor, b: torch.Tensor, slots: torch.Tensor
) -> None:
    """y (B, out) += shrunk (B, R) through each row's own B of b (N, R, out), in place.

    y may be some columns of a wider tensor.
    """
    triton_kernels = _triton(y.device.type)
    if triton_kernels is None:
        lora_expand_add_twin(y, shrunk, b, slots)
    else:
        triton_kernels.lora_expand_add(y, shrunk, b, slots)


def lora_expand_add_twin(
    y: torch.Tensor, shrunk: torch.Tensor, b: torch.Tensor, slots: torch.Tensor
) -> None:
    y += torch.bmm(shrunk.unsqueeze(1), b[slots].float()).squeeze(1).to(y.dtype)


def are_fused(device_type: str) -> bool:
    """Whether the kernels, not their twins, run on this kind of device."""
    return _triton(device_type) is not None


@functools.cache
def _triton(device_type: str) -> ModuleType | None:
    """The Triton kernels, where they run."""
    runs = device_type == "cuda" or os.environ.get(_INTERPRET) == "1"
    if not runs or importlib.util.find_spec("triton") is None:
        return None
    from deployments.engine import triton_kernels

    return triton_kernels
