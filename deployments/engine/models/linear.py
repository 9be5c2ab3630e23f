"""Fuse linear layers of the base model into one product, with the adapters' own beside it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from deployments.engine.kernels.ops import GATED, Expansion, Shrink, gated_activation, rms_norm
from deployments.engine.lora.layers import LoraBatch, LoraLayer
from deployments.engine.models.products import (
    KernelProduct,
    PackedProduct,
    Product,
    plain_product,
    product_of,
)
from deployments.engine.models.weights import (
    lora_modules,
    packed,
    squared_norms,
    stacked_bias,
    tied_or_own,
)
from deployments.engine.quantised.linear import QuantisedLinear

_IDENTITY_ROWS = 256  # of a product with the identity matrix, at once
HEAD = "lm_head"  # its path in every base model


class AdaptedLinear(ABC):
    """Multiply by weights of the base model, and add each token's adapter.

    Args:
        name: of the LoRA layer.
        modules: path in the base model -> outputs of each layer that is stacked in the weight.
        dtype: of x and of the result.
        can_rescale: whether adapters may rescale what the base model computes (DoRA).
    """

    def __init__(
        self,
        name: str,
        modules: Mapping[str, int],
        in_features: int,
        bias: torch.Tensor | None,
        product: Product,
        dtype: torch.dtype,
        *,
        can_rescale: bool = True,
    ) -> None:
        sizes = list(modules.values())
        self.name, self.out_features = name, sum(sizes)
        base = self if can_rescale else None
        self.lora_layer = LoraLayer(name, in_features, lora_modules(list(modules), sizes), base)
        self._bias, self._product, self._dtype = bias, product, dtype
        self._adds_in_turn = False  # product, adapter, bias and residual, whoever rescales

    def __call__(self, x: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        """Return (T, out) for x (T, in), each token with its own adapter."""
        return self._adapted(x, lora, None)

    def keep_order(self) -> bool:
        """Compute each row in one order of sums from now on; returns whether that is possible.

        On a CPU what is added to a product is added in turn: a neighbour's adapter that rescales
        (DoRA) would change the order. On a GPU those loaded so far decide it, for all rows alike.
        """
        product = self._product.in_order()
        if product is not None:
            self._product, self._adds_in_turn = product, isinstance(product, PackedProduct)
        return product is not None

    def products(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x.to(self._dtype), is_biased=False)

    @abstractmethod
    def squared_norms(self) -> torch.Tensor: ...

    def _adapted(
        self, x: torch.Tensor, lora: LoraBatch | None, expansion: Expansion | None
    ) -> torch.Tensor:
        """Return the product of x (T, in) with each token's adapter; `expansion` is from
        lora.norm."""
        if lora is not None and expansion is None:
            expansion = lora.shrink(self.name, x)
        if (product := self._adding(lora, expansion)) is not None:
            return product(x, expansion=expansion)
        is_rescaled = self._is_rescaled(lora)
        y = self._product(x, is_biased=not is_rescaled)
        if lora is not None:
            lora.add(self.name, x, y, expansion)
        return y.add_(self._bias) if is_rescaled and self._bias is not None else y

    def _is_rescaled(self, lora: LoraBatch | None) -> bool:
        """Return whether the product comes alone, with what is added to it in turn."""
        return self._adds_in_turn or (lora is not None and lora.rescales(self.name))

    def _adding(self, lora: LoraBatch | None, expansion: Expansion | None) -> KernelProduct | None:
        """Return the product if it adds the adapters itself, whose expansion this is."""
        if expansion is None or expansion.groups is None or self._is_rescaled(lora):
            return None
        return self._product if isinstance(self._product, KernelProduct) else None


class FusedLinear(AdaptedLinear):
    """Compute y = x @ W.T + bias, where W stacks several linear layers of the base model by rows.

    Args:
        name: unique in the decoder; the LoRA layer has the same name.
        layers: module path -> linear layer, all plain or all quantised in one way. Their weights
            are removed as they are read, so that the base model is not held in memory twice.
    """

    def __init__(self, name: str, layers: dict[str, torch.nn.Linear], dtype: torch.dtype) -> None:
        own = list(layers.values())
        sizes = [layer.out_features for layer in own]
        bias = stacked_bias([layer.bias for layer in own], sizes, dtype)
        self._device = own[0].weight.device
        modules = dict(zip(layers, sizes, strict=True))
        product = product_of(own, bias, dtype)
        super().__init__(name, modules, own[0].in_features, bias, product, dtype)
        self._squared_norms: torch.Tensor | None = None

    def after_norm(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Apply the layer to the RMS norm of x (T, in), whose weight is (in,)."""
        alone = self._row_after_norm(x, weight, eps, lora)
        if alone is not None:
            return alone
        if lora is None:
            return self._adapted(rms_norm(x, weight, eps), None, None)
        if (done := self._with_shrink(x, weight, eps, lora)) is not None:
            y, added = done
            lora.add(self.name, x, y, added)
            return y
        normed, expansion = lora.norm(self.name, x, weight, eps)
        return self._adapted(normed, lora, expansion)

    def _row_after_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        lora: LoraBatch | None,
        activation: str | None = None,
    ) -> torch.Tensor | None:
        """Return the product of the norm of a single row that no adapter changes, from one kernel;
        None where there is no such kernel."""
        if not isinstance(self._product, KernelProduct) or not self._product.takes_norm(x):
            return None
        if lora is not None and (lora.adapts(self.name) or lora.owes(x)):
            return None
        return self._product.after_norm(x, (weight, eps), activation)

    def _with_shrink(
        self, x: torch.Tensor, weight: torch.Tensor | None, eps: float, lora: LoraBatch
    ) -> tuple[torch.Tensor, Expansion] | None:
        """Return the product of few rows, normed if there is a weight, from a kernel that
        multiplies by A too, and what is still to be added; None where there is no such kernel."""
        if (found := self._shrink(x, lora)) is None:
            return None
        product, shrink = found
        norm = None
        if weight is not None and product.takes_norm(x) and not lora.owes(x):
            norm = weight, eps
        elif weight is not None:
            x = lora.normed(x, weight, eps)
        y, shrunk = product.with_shrink(x, shrink, norm=norm)
        return y, lora.expanded(self.name, shrunk)

    def _shrink(
        self, x: torch.Tensor, lora: LoraBatch | None
    ) -> tuple[KernelProduct, Shrink] | None:
        """Return the product, and by what it multiplies x (T, in) as well, if it does."""
        product = self._product
        if lora is None or not isinstance(product, KernelProduct):
            return None
        if self._is_rescaled(lora) or not product.takes_shrink(x):
            return None
        shrink = lora.few(self.name)
        return None if shrink is None else (product, shrink)

    def gated_after_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        eps: float,
        lora: LoraBatch | None,
        activation: str,
    ) -> torch.Tensor:
        """Return gated_activation of `after_norm` (T, out / 2); without a norm if it has no weight.

        It is one kernel where the product is and adds the adapters itself, and two where they are
        added afterwards.
        """
        expansion = None
        is_adapted = lora is not None and lora.adapts(self.name)
        if activation in GATED:
            if weight is not None:
                alone = self._row_after_norm(x, weight, eps, lora, activation)
                if alone is not None:
                    return alone
            if lora is not None and (done := self._with_shrink(x, weight, eps, lora)) is not None:
                y, added = done
                return lora.gated(added, y, activation)
        if weight is not None and lora is not None:
            x, expansion = lora.norm(self.name, x, weight, eps)
        elif weight is not None:
            x = rms_norm(x, weight, eps)
        if lora is not None and expansion is None:
            expansion = lora.shrink(self.name, x)
        product = self._adding(lora, expansion)
        if isinstance(self._product, KernelProduct) and not is_adapted:
            product = self._product
        if product is not None and activation in GATED:
            return product.gated(x, activation, expansion)
        if expansion is not None and activation in GATED and not self._is_rescaled(lora):
            assert lora is not None, "an expansion of no adapters"
            return lora.gated(expansion, self._product(x), activation)
        return gated_activation(self._adapted(x, lora, expansion), activation)

    def before_attention(
        self, x: torch.Tensor, weight: torch.Tensor, eps: float, lora: LoraBatch | None
    ) -> tuple[torch.Tensor, Expansion | None]:
        """Do `after_norm`, but leave the LoRA expansion, if any, to the attention that follows,
        unless the product adds it."""
        alone = self._row_after_norm(x, weight, eps, lora)
        if alone is not None:
            return alone, None
        if lora is None:
            return self._adapted(rms_norm(x, weight, eps), None, None), None
        if (done := self._with_shrink(x, weight, eps, lora)) is not None:
            return done
        normed, expansion = lora.norm(self.name, x, weight, eps)
        if self._is_rescaled(lora) or self._adding(lora, expansion) is not None:
            return self._adapted(normed, lora, expansion), None
        y = self._product(normed)
        return y, lora.expansion(self.name, normed, y, expansion)

    def add_to(
        self, residual: torch.Tensor, x: torch.Tensor, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Add self(x) to residual (T, out) in place."""
        if self._is_rescaled(lora):
            return residual.add_(self(x, lora))
        expansion = None if lora is None else lora.shrink(self.name, x)
        if (product := self._adding(lora, expansion)) is not None:
            return product.add_to(residual, x, expansion)
        self._product.add_to(residual, x)
        if lora is not None:
            lora.add(self.name, x, residual, expansion)
        return residual

    def add_before_norm(
        self, residual: torch.Tensor, x: torch.Tensor, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Do `add_to`, but leave the LoRA expansion, if any, to the RMS norm of the residual that
        comes next, or to `lora.settle`, where few rows are multiplied by A in the same kernel."""
        found = self._shrink(x, lora)
        if lora is None or found is None:
            return self.add_to(residual, x, lora)
        product, shrink = found
        _, shrunk = product.with_shrink(x, shrink, residual=residual)
        lora.owe(residual, lora.expanded(self.name, shrunk))
        return residual

    def squared_norms(self) -> torch.Tensor:
        if self._squared_norms is None:
            self._squared_norms = self._norms_by_products()
        return self._squared_norms

    def _norms_by_products(self) -> torch.Tensor:
        """Return the sums of squares (out,): packed and quantised weights are not read back, so
        they are multiplied by the identity matrix, some of its rows at a time."""
        found = torch.zeros(self.out_features, device=self._device)
        for first in range(0, self.lora_layer.in_features, _IDENTITY_ROWS):
            rows = min(_IDENTITY_ROWS, self.lora_layer.in_features - first)
            x = torch.zeros(rows, self.lora_layer.in_features, device=self._device)
            x.diagonal(first).fill_(1.0)
            found += self.products(x).float().square_().sum(0)
        return found


class LMHead(AdaptedLinear):
    """Map states (n, d) to logits (n, V), each with its own adapter.

    The head shares the embedding's tensor when the two are equal by value, whatever the
    configuration says about tying: transformers' flag is wrong for T5.
    """

    def __init__(self, head: Any, embedding: Any, embedding_weight: torch.Tensor) -> None:
        dtype = embedding_weight.dtype
        bias = None if head.bias is None else head.bias.data.to(dtype)
        is_quantised = isinstance(head, QuantisedLinear)
        self._weight: torch.Tensor | None = None
        if is_quantised:
            product = product_of([head], bias, dtype)
        else:
            weight = tied_or_own(head.weight.data, embedding.weight.data, embedding_weight)
            self._weight = weight
            blocks = packed(weight)
            product = plain_product(weight, bias) if blocks is None else PackedProduct(blocks, bias)
        modules = {HEAD: head.out_features}
        super().__init__(
            HEAD, modules, head.in_features, bias, product, dtype, can_rescale=not is_quantised
        )

    def squared_norms(self) -> torch.Tensor:
        assert self._weight is not None, "a quantised head has no base to rescale"
        return squared_norms(self._weight)
