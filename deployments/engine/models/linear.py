"""Fuse linear layers of the base model into one product, with the adapters' own beside it."""

from typing import Any

import torch

from deployments.engine.kernels.ops import Expansion, rms_norm
from deployments.engine.lora.layers import LoraBatch, LoraLayer
from deployments.engine.models.products import PackedProduct, TorchProduct, product_of
from deployments.engine.models.weights import lora_modules, packed, stacked_bias
from deployments.engine.quantised.linear import QuantisedLinear

HEAD = "lm_head"  # its path in every base model


class FusedLinear:
    """Compute y = x @ W.T + bias, where W stacks several linear layers of the base model by rows.

    Args:
        name: unique in the decoder; the LoRA layer has the same name.
        layers: module path -> linear layer, all plain or all quantised in one way. Their weights
            are removed as they are read, so that the base model is not held in memory twice.
    """

    def __init__(self, name: str, layers: dict[str, torch.nn.Linear], dtype: torch.dtype) -> None:
        own = list(layers.values())
        sizes = [layer.out_features for layer in own]
        self.name = name
        self.out_features = sum(sizes)
        self.lora_layer = LoraLayer(name, own[0].in_features, lora_modules(list(layers), sizes))
        bias = stacked_bias([layer.bias for layer in own], sizes, dtype)
        self._product = product_of(own, bias, dtype)

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
        self._product.add_to(residual, x)
        if lora is not None:
            lora.add(self.name, x, residual)
        return residual


class LMHead:
    """Map states (n, d) to logits (n, V), each with its own adapter.

    The head shares the embedding's tensor when the two are equal by value, whatever the
    configuration says about tying: transformers' flag is wrong for T5 (docs/decisions.md).
    """

    def __init__(self, head: Any, embedding: Any, embedding_weight: torch.Tensor) -> None:
        dtype = embedding_weight.dtype
        bias = None if head.bias is None else head.bias.data.to(dtype)
        self.vocab_size: int = head.out_features
        modules = lora_modules([HEAD], [self.vocab_size])
        self.lora_layer = LoraLayer(HEAD, head.in_features, modules)
        if isinstance(head, QuantisedLinear):
            self._product = product_of([head], bias, dtype)
            return
        own: torch.Tensor = head.weight.data
        tied = embedding.weight.data
        is_tied = own.data_ptr() == tied.data_ptr() or torch.equal(own, tied)
        weight = embedding_weight if is_tied else own.to(dtype)
        blocks = packed(weight)
        self._product = (
            TorchProduct(weight, bias) if blocks is None else PackedProduct(blocks, bias)
        )

    def __call__(self, hidden: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        logits = self._product(hidden)
        if lora is not None:
            lora.add(HEAD, hidden, logits)
        return logits
