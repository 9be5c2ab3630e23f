"""Fuse linear layers into one product, in the layout that the device multiplies fastest."""

from typing import Any

import torch
import torch.nn.functional as F

from deployments.engine.kernels.backend import are_fused
from deployments.engine.kernels.ops import Expansion, rms_norm
from deployments.engine.lora.layers import LoraBatch, LoraLayer
from deployments.engine.models.weights import lora_modules, packed, stacked_bias, take_weight

HEAD = "lm_head"  # its path in every base model


class FusedLinear:
    """Compute y = x @ W.T + bias, where W stacks several linear layers of the base model by rows.

    A CPU multiplies fastest from oneDNN's packed blocks, a GPU from the (out, in) of the base
    model.

    Attributes:
        is_invariant: on a GPU, a row's sums have one order, whatever the number of rows. On a CPU
            they have (docs/engine.md).

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
        self.lora_layer = LoraLayer(name, weights[0].shape[1], lora_modules(list(layers), weights))
        self._bias = stacked_bias(biases, weights, dtype)
        weight = torch.cat(weights)
        self.is_invariant = False
        self._packed = None if are_fused(weight.device.type) else packed(weight)
        if self._packed is None:
            self._weight = weight

    def __call__(self, x: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        """Return (T, out) for x (T, in), each token with its own adapter."""
        y = self._product(x)
        if lora is not None:
            lora.add(self.name, x, y)
        return y

    def after_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Apply the layer to the RMS norm of x (T, in), whose weight is (in,)."""
        if lora is None:
            return self._product(rms_norm(x, weight, eps))
        normed, shrunk = lora.norm(self.name, x, weight, eps)
        y = self._product(normed)
        lora.add(self.name, normed, y, shrunk)
        return y

    def before_attention(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, lora: LoraBatch | None
    ) -> tuple[torch.Tensor, Expansion | None]:
        """Do `after_norm`, but leave the LoRA expansion, if any, to the attention that follows."""
        if lora is None:
            return self._product(rms_norm(x, weight, eps)), None
        normed, shrunk = lora.norm(self.name, x, weight, eps)
        y = self._product(normed)
        return y, lora.expansion(self.name, normed, y, shrunk)

    def add_to(
        self, residual: torch.Tensor, x: torch.Tensor, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Add self(x) to residual (T, out) in place."""
        if self.is_invariant:
            _in_order(x, self._weight, self._bias, residual)
        elif self._packed is not None or self._bias is not None:
            return residual.add_(self(x, lora))
        else:
            residual.addmm_(x, self._weight.t())
        if lora is not None:
            lora.add(self.name, x, residual)
        return residual

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        if self.is_invariant:
            return _in_order(x, self._weight, self._bias)
        if self._packed is not None:
            return _of_blocks(x, self._packed, self._bias)
        return F.linear(x, self._weight, self._bias)


def _of_blocks(x: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x @ W.T + bias of oneDNN's blocks of W. One row is multiplied as two: then alone the
    order of its sums is another one."""
    both = x if len(x) > 1 else x.repeat(2, 1)
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(both, blocks, bias, "none", [], "")
    return y[: len(x)]


def _in_order(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    add_to: torch.Tensor | None = None,
) -> torch.Tensor:
    from deployments.engine.kernels.triton_linear import linear

    product: torch.Tensor = linear(x, weight, bias, add_to=add_to)
    return product


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
        self.is_invariant = False
        self._packed = None if are_fused(self._weight.device.type) else packed(self._weight)
        modules = lora_modules([HEAD], [self._weight])
        self.lora_layer = LoraLayer(HEAD, self._weight.shape[1], modules)

    def __call__(self, hidden: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        if self.is_invariant:
            logits = _in_order(hidden, self._weight, self._bias)
        elif self._packed is not None:
            logits = _of_blocks(hidden, self._packed, self._bias)
        else:
            logits = F.linear(hidden, self._weight, self._bias)
        if lora is not None:
            lora.add(HEAD, hidden, logits)
        return logits
