"""Take the weights of transformers' layers, and pack them for products."""

from collections.abc import Sequence
from typing import Any

import torch

from deployments.engine.lora.layers import LoraModule


def has_blocks(dtype: torch.dtype) -> bool:
    """Return whether oneDNN keeps weights of `dtype` in blocks on this CPU: without the
    instructions for bfloat16 (AVX512-BF16 or AMX, say) it has float32's only."""
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(weight: torch.Tensor) -> torch.Tensor | None:
    """Return oneDNN's blocks of a weight (out, in).

    Returns None if it is not on a CPU, or the CPU has no blocks for its dtype.
    """
    if weight.device.type != "cpu" or not has_blocks(weight.dtype):
        return None
    blocks: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return blocks


def take_weight(layer: torch.nn.Linear) -> torch.Tensor:
    """Return the weight of a layer, which is left without one: it is in memory once."""
    weight = layer.weight.data
    layer.weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)
    return weight


def lora_modules(paths: Sequence[str], sizes: Sequence[int]) -> tuple[LoraModule, ...]:
    """Return where the outputs of each layer, so many, lie in those of the fused one."""
    modules, start = [], 0
    for path, size in zip(paths, sizes, strict=True):
        modules.append(LoraModule(path, start, start + size))
        start += size
    return tuple(modules)


def stacked_bias(
    biases: Sequence[torch.Tensor | None], sizes: Sequence[int], dtype: torch.dtype
) -> torch.Tensor | None:
    """Return the biases (out,), zeros for a layer without one. Returns None if no layer has one."""
    device = next((bias.device for bias in biases if bias is not None), None)
    if device is None:
        return None
    return torch.cat(
        [
            torch.zeros(size, dtype=dtype, device=device) if bias is None else bias.data.to(dtype)
            for bias, size in zip(biases, sizes, strict=True)
        ]
    )


def tied_or_own(own: torch.Tensor, tied: torch.Tensor, converted: torch.Tensor) -> torch.Tensor:
    """Return `converted`, which is `tied` in the dtype of the steps, if the two are equal by value;
    else `own` in that dtype."""
    is_tied = own.data_ptr() == tied.data_ptr() or torch.equal(own, tied)
    return converted if is_tied else own.to(converted.dtype)


def squared_norms(weight: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares (out,) of each output of a weight (out, in), in float32."""
    lengths: torch.Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32)
    return lengths.square_()


def norm_weight(norm: Any, dtype: torch.dtype, offset: float = 0.0) -> torch.Tensor:
    """Return the weight (d,) of an RMS norm: what is stored plus `offset`.

    A sum is kept in float32: near one, bfloat16 would round most of the stored part away.
    """
    weight: torch.Tensor = norm.weight.data
    return weight.float() + offset if offset else weight.to(dtype)
