"""Quantise a base model that is in memory, as its folder would be quantised when it is loaded."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from transformers.quantizers.quantizers_utils import should_convert_module

from deployments.engine.model_loader import Pretrained
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.quantised.loader import plain_layers
from deployments.engine.quantised.weight import Kind, quantise


def quantised_base(base: Pretrained, kind: Kind, *, with_bitsandbytes: bool = False) -> Pretrained:
    """Return the base with quantised layers, each where it was; its plain weights are gone.

    with_bitsandbytes: the layers are bitsandbytes' own, for the reference decoder and PEFT.
    """
    make = _bitsandbytes_layer if with_bitsandbytes else _layer
    left = plain_layers(base.model, kind)
    for path, module in list(base.model.named_modules()):
        if type(module) is torch.nn.Linear and should_convert_module(path, left):
            base.model.set_submodule(path, make(module, kind))
            module.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    return dataclasses.replace(
        base,
        quantization=kind,
        dtype_name=f"{kind} ({base.dtype_name} activations)",
        with_bitsandbytes=with_bitsandbytes,
    )


def _layer(linear: torch.nn.Linear, kind: Kind) -> torch.nn.Module:
    weight = linear.weight.data
    bias = None if linear.bias is None else linear.bias.data
    return QuantisedLinear(quantise(weight, kind), bias, weight.dtype)


def _bitsandbytes_layer(linear: torch.nn.Linear, kind: Kind) -> torch.nn.Module:
    """Raises ValueError: bitsandbytes has no fp8."""
    import bitsandbytes

    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    weight, device = linear.weight.data.cpu(), linear.weight.device
    make: Callable[..., Any]
    options: dict[str, Any]
    if kind == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0)
        make, options = bitsandbytes.nn.Int8Params, {"has_fp16_weights": False}
    elif kind == "nf4":
        options = {"quant_type": "nf4", "compress_statistics": True}
        layer = bitsandbytes.nn.Linear4bit(*sizes, compute_dtype=weight.dtype, **options)
        make = bitsandbytes.nn.Params4bit
    else:
        raise ValueError(f"bitsandbytes has no {kind}")
    layer.weight = make(weight, requires_grad=False, **options).to(device)
    layer.bias = linear.bias
    module: torch.nn.Module = layer
    return module
