"""Fuse linear layers into one product, in the layout that the device multiplies fastest."""

from typing import Any

import torch
import torch.nn.functional as F

from deployments.engine.kernels.ops import Expansion, rms_norm
from deployments.engine.lora.layers import LoraBatch, LoraLayer
from deployments.engine.models.weights import (
    lora_modules,
    packed,
    squared_norms,
    stacked_bias,
    take_weight,
)

# Measured with float32 and 576 columns (docs/engine.md): 1.05 ms against 0.62 at 16 rows and 3,072
# outputs; no gain at 960 outputs, slower from 64 rows on.
_WIDE = 2048
_FEW_ROWS = range(6, 41)
HEAD = "lm_head"  # its path in every base model


class FusedLinear:
    """Compute y = x @ W.T + bias, where W stacks several linear layers of the base model by rows.

    Layouts: bfloat16 on a CPU multiplies fastest from oneDNN's packed blocks, float32 from
    (in, out), a GPU from the (out, in) of the base model. MKL is slow at a few rows times a wide
    float32 matrix, so a wide one stays (out, in) and is multiplied as W @ x.T.

    Args:
        name: unique in the decoder; the LoRA layer has the same name.
        layers: module path -> linear layer. Their weights are removed as they are read, so that
            the base model is not held in memory twice.
    """

    def __init__(self, name: str, layers: dict[str, torch.nn.Linear], dtype: torch.dtype) -> None:
        weights = [take_weight(layer).to(dtype) for layer in layers.values()]
        biases = [layer.bias for layer in layers.values()]
        self.name = name
        self.out_features = sum(len(weight) for weight in weights)
        modules = lora_modules(list(layers), weights)
        self.lora_layer = LoraLayer(name, weights[0].shape[1], modules, self)
        self._bias = stacked_bias(biases, weights, dtype)
        weight = torch.cat(weights)
        self._dtype, self._squared_norms = dtype, squared_norms(weight)
        self._packed = packed(weight) if dtype == torch.bfloat16 else None
        self._is_wide = weight.device.type == "cpu" and len(weight) >= _WIDE
        if self._packed is not None:
            return
        if weight.device.type == "cpu" and len(weight) < _WIDE:
            self._weight = weight.t().contiguous()
        else:
            self._weight = weight.t()

    def __call__(self, x: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        """Return (T, out) for x (T, in), each token with its own adapter."""
        return self._adapted(x, lora, None)

    def after_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Apply the layer to the RMS norm of x (T, in), whose weight is (in,)."""
        if lora is None:
            return self._product(rms_norm(x, weight, eps))
        normed, shrunk = lora.norm(self.name, x, weight, eps)
        return self._adapted(normed, lora, shrunk)

    def before_attention(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, lora: LoraBatch | None
    ) -> tuple[torch.Tensor, Expansion | None]:
        """Do `after_norm`, but leave the LoRA expansion, if any, to the attention that follows."""
        if lora is None:
            return self._product(rms_norm(x, weight, eps)), None
        normed, shrunk = lora.norm(self.name, x, weight, eps)
        if lora.rescales(self.name):
            return self._adapted(normed, lora, shrunk), None
        y = self._product(normed)
        return y, lora.expansion(self.name, normed, y, shrunk)

    def add_to(
        self, residual: torch.Tensor, x: torch.Tensor, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Add self(x) to residual (T, out) in place."""
        is_rescaled = lora is not None and lora.rescales(self.name)
        if self._packed is not None or self._bias is not None or is_rescaled:
            return residual.add_(self(x, lora))
        residual.addmm_(x, self._weight)
        if lora is not None:
            lora.add(self.name, x, residual)
        return residual

    def products(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x.to(self._dtype), is_biased=False)

    def squared_norms(self) -> torch.Tensor:
        return self._squared_norms

    def _adapted(
        self, x: torch.Tensor, lora: LoraBatch | None, shrunk: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the product of x (T, in) with each token's adapter; `shrunk` is from lora.norm."""
        is_rescaled = lora is not None and lora.rescales(self.name)
        y = self._product(x, is_biased=not is_rescaled)
        if lora is not None:
            lora.add(self.name, x, y, shrunk)
        return y.add_(self._bias) if is_rescaled and self._bias is not None else y

    def _product(self, x: torch.Tensor, *, is_biased: bool = True) -> torch.Tensor:
        bias = self._bias if is_biased else None
        if self._packed is not None:
            product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self._packed, bias, "none", [], ""
            )
            return product
        if bias is not None:
            return torch.addmm(bias, x, self._weight)
        if self._is_wide and len(x) in _FEW_ROWS:
            return torch.mm(self._weight.t(), x.t()).t()
        return torch.mm(x, self._weight)


class LMHead:
    """Map states (n, d) to logits (n, V), each with its own adapter.

    The head shares the embedding's tensor when the two are equal by value, whatever the
    configuration says about tying: transformers' flag is wrong for T5 (docs/decisions.md).
    """

    def __init__(self, head: Any, embedding: Any, embedding_weight: torch.Tensor) -> None:
        dtype = embedding_weight.dtype
        own: torch.Tensor = head.weight.data
        tied = embedding.weight.data
        is_tied = own.data_ptr() == tied.data_ptr() or torch.equal(own, tied)
        self._weight = embedding_weight if is_tied else own.to(dtype)
        self._bias = None if head.bias is None else head.bias.data.to(dtype)
        self.vocab_size = len(self._weight)
        self._packed = packed(self._weight)
        modules = lora_modules([HEAD], [self._weight])
        self.lora_layer = LoraLayer(HEAD, self._weight.shape[1], modules, self)

    def __call__(self, hidden: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        is_rescaled = lora is not None and lora.rescales(HEAD)
        logits = self._product(hidden, None if is_rescaled else self._bias)
        if lora is not None:
            lora.add(HEAD, hidden, logits)
        return logits.add_(self._bias) if is_rescaled and self._bias is not None else logits

    def products(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x.to(self._weight.dtype), None)

    def squared_norms(self) -> torch.Tensor:
        return squared_norms(self._weight)

    def _product(self, hidden: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        logits: torch.Tensor
        if self._packed is not None:
            logits = torch.ops.mkldnn._linear_pointwise(hidden, self._packed, bias, "none", [], "")
        else:
            logits = F.linear(hidden, self._weight, bias)
        return logits
