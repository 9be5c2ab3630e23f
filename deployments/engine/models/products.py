"""Multiply by the weight of a fused linear layer, in the layout that the device is fastest with."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from deployments.engine.kernels.backend import are_fused
from deployments.engine.kernels.ops import Expansion, Shrink
from deployments.engine.models.weights import packed, take_weight
from deployments.engine.quantised.interleaved import InterleavedWeight, interleaved
from deployments.engine.quantised.linear import QuantisedLinear
from deployments.engine.quantised.weight import QuantisedWeight, stacked

# Layers that become one product (models/stack.py, models/t5.py).
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q", "k", "v"),
    ("wi_0", "wi_1"),
)


class Product(Protocol):
    """Hold a weight (out, in) and perhaps a bias."""

    def __call__(self, x: torch.Tensor, *, is_biased: bool = True) -> torch.Tensor:
        """Return x @ W.T + bias (T, out) of x (T, in), without the bias if not `is_biased`."""

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Add self(x) to residual (T, out) in place."""

    def in_order(self) -> "Product | None":
        """Return the product whose sums have one order, whatever the number of rows; None if there
        is none by this weight on this device."""


def product_of(
    layers: Sequence[torch.nn.Linear], bias: torch.Tensor | None, dtype: torch.dtype
) -> Product:
    """Return the product by all these layers' weights, which are taken out of them.

    Raises:
        ValueError: some are quantised and others are not, or in another way.
    """
    quantised = [layer for layer in layers if isinstance(layer, QuantisedLinear)]
    if not quantised:
        weight = torch.cat([take_weight(layer).to(dtype) for layer in layers])
        blocks = packed(weight)
        return plain_product(weight, bias) if blocks is None else PackedProduct(blocks, bias)
    if len(quantised) < len(layers):
        raise ValueError("some layers of one product are quantised, and others are not")
    stack = stacked([layer.take() for layer in quantised])  # where they wait: on the host
    stack = stack.to(quantised[0].weight.device)
    if are_fused(stack.device.type):
        return KernelProduct(interleaved(stack), bias)
    return QuantisedProduct(stack, bias)


def plain_product(weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
    """Return the product by a plain weight (out, in) that is not packed."""
    if weight.is_cuda and weight.dtype == torch.bfloat16 and are_fused("cuda"):
        return KernelProduct(weight, bias)
    return TorchProduct(weight, bias)


def kinds_in_one_product(model: torch.nn.Module) -> str | None:
    """Return which layers would be one product but are quantised in several ways. None: none."""
    for path, module in model.named_modules():
        for names in _FUSED:
            own = {name: getattr(module, name) for name in names if hasattr(module, name)}
            kinds = {_kind(layer) for layer in own.values()}
            if len(kinds) > 1:
                return f"{', '.join(own)} of {path} are {' and '.join(sorted(kinds))}"
    return None


def _kind(layer: Any) -> str:
    return layer.quantised.kind if isinstance(layer, QuantisedLinear) else "plain"


class QuantisedProduct:
    """Multiply by a quantised weight with torch: the twin of KernelProduct."""

    def __init__(self, weight: QuantisedWeight, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor, *, is_biased: bool = True) -> torch.Tensor:
        y = self._weight.product(x)
        return y.add_(self._bias) if self._bias is not None and is_biased else y

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return residual.add_(self(x))

    def in_order(self) -> None:
        return None


class KernelProduct:
    """Multiply with kernels of ours where rows are few, with torch where they are many.

    Both add an expansion whose rows are grouped.
    """

    def __init__(self, weight: InterleavedWeight | torch.Tensor, bias: torch.Tensor | None) -> None:
        from deployments.engine.kernels import quantised_product as kernels

        self._with_shrink: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = (
            kernels.product_with_shrink
        )
        self.takes_norm: Callable[[torch.Tensor], bool] = kernels.has_row_norm
        self._takes_shrink = kernels.takes_shrink
        is_plain = isinstance(weight, torch.Tensor)
        function: Any = kernels.plain_product if is_plain else kernels.product
        self._product: Callable[..., torch.Tensor] = functools.partial(function, weight=weight)
        self._weight, self._bias = weight, bias

    def __call__(
        self, x: torch.Tensor, *, is_biased: bool = True, expansion: Expansion | None = None
    ) -> torch.Tensor:
        return self._product(x, bias=self._bias if is_biased else None, expansion=expansion)

    def add_to(
        self, residual: torch.Tensor, x: torch.Tensor, expansion: Expansion | None = None
    ) -> torch.Tensor:
        return self._product(x, bias=self._bias, residual=residual, expansion=expansion)

    def gated(
        self, x: torch.Tensor, activation: str, expansion: Expansion | None = None
    ) -> torch.Tensor:
        """Return gated_activation of self(x), for an activation of GATED."""
        return self._product(x, bias=self._bias, activation=activation, expansion=expansion)

    def after_norm(
        self, x: torch.Tensor, norm: tuple[torch.Tensor, float], activation: str | None
    ) -> torch.Tensor:
        """Return self of an RMS norm, by its weight and epsilon, of a single row x that it
        `takes_norm` of, or `gated` of it."""
        about = {"norm": norm, "bias": self._bias, "activation": activation}
        y, _ = self._with_shrink(x, self._weight, None, **about)
        return y

    def takes_shrink(self, x: torch.Tensor) -> bool:
        """Return whether `with_shrink` takes x (T, in)."""
        return self._takes_shrink(x, self._weight)

    def with_shrink(
        self,
        x: torch.Tensor,
        shrink: Shrink,
        *,
        norm: tuple[torch.Tensor, float] | None = None,
        residual: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do `__call__`, behind a norm that `after_norm` takes, or `add_to`; return what `shrink`
        makes of x (T, P, R) too."""
        about = {"norm": norm, "bias": self._bias, "residual": residual}
        y, shrunk = self._with_shrink(x, self._weight, shrink, **about)
        assert shrunk is not None, "nothing of A"
        return y, shrunk

    def in_order(self) -> "OrderedProduct | None":
        if isinstance(self._weight, torch.Tensor):
            return OrderedProduct(self._weight, self._bias)
        return None


class OrderedProduct:
    """Multiply by a plain weight (out, in) with a kernel that cuts each sum by the weight's shape
    alone."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        from deployments.engine.kernels.triton_linear import linear

        self._product: Callable[..., torch.Tensor] = functools.partial(linear, weight=weight)
        self._bias = bias

    def __call__(self, x: torch.Tensor, *, is_biased: bool = True) -> torch.Tensor:
        return self._product(x, bias=self._bias if is_biased else None)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._product(x, bias=self._bias, add_to=residual)

    def in_order(self) -> "OrderedProduct":
        return self


class PackedProduct:
    """Multiply by oneDNN's blocks, from which a CPU is fastest.

    One row is multiplied as two: only a single one has sums of another order.
    """

    def __init__(self, blocks: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._blocks, self._bias = blocks, bias

    def __call__(self, x: torch.Tensor, *, is_biased: bool = True) -> torch.Tensor:
        bias = self._bias if is_biased else None
        rows = x if len(x) > 1 else x.repeat(2, 1)
        return _of_blocks(rows, self._blocks, bias)[: len(x)]

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return residual.add_(self(x))

    def in_order(self) -> "PackedProduct":
        return self


def _of_blocks(x: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")
    return product


class TorchProduct:
    """Multiply with torch."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor, *, is_biased: bool = True) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias if is_biased else None)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self._bias is not None:
            return residual.add_(self(x))
        return residual.addmm_(x, self._weight.t())

    def in_order(self) -> OrderedProduct | None:
        if are_fused(self._weight.device.type):
            return OrderedProduct(self._weight, self._bias)
        return None
