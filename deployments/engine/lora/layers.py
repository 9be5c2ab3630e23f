"""Describe the linear layers that adapters change, the weights of all adapters, and a batch's."""

from dataclasses import dataclass
from typing import Protocol

import torch

from deployments.engine.kernels.ops import Expansion, Shrink, rms_norm


@dataclass(frozen=True, slots=True)
class LoraModule:
    """Name one linear layer of the base model inside a fused one: output columns [start, stop)."""

    path: str  # in the base model, e.g. "model.layers.0.self_attn.q_proj"
    start: int
    stop: int


class BaseProduct(Protocol):
    """Multiply by the base model's weight W of a fused layer, for what DoRA has to know of it."""

    def products(self, x: torch.Tensor) -> torch.Tensor:
        """Return x @ W.T (n, out) for x (n, in), without a bias, in W's dtype."""

    def squared_norms(self) -> torch.Tensor:
        """Return the sum of squares (out,) of W's weights of each output, in float32."""


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """Describe a fused linear layer that adapters may change.

    base: None where adapters may not rescale what the base model computes.
    """

    name: str
    in_features: int
    modules: tuple[LoraModule, ...]
    base: BaseProduct | None = None


@dataclass(slots=True)
class LoraStack:
    """Hold one module's weights of every slot. a: (N, R, in); b: (N, R, out).

    gains: (N, out) float32 by which the base model's product is multiplied; None: no slot does.
    """

    a: torch.Tensor
    b: torch.Tensor
    gains: torch.Tensor | None = None


class LoraBatch(Protocol):
    """Know which adapter each token of one forward pass has. `layer` is a LoraLayer's name."""

    def adapts(self, layer: str) -> bool:
        """Return whether `add` may change y."""

    def rescales(self, layer: str) -> bool:
        """Return whether `add` multiplies y by gains first (DoRA): y then is the base model's
        product alone, without a bias or a residual."""

    def few(self, layer: str) -> Shrink | None:
        """Return by what the product by few rows x may multiply x as well; None: the ranks are too
        many, or there are none."""

    def expanded(self, layer: str, shrunk: torch.Tensor) -> Expansion:
        """Return what that product with A (B, P, R) becomes part of."""

    def owe(self, x: torch.Tensor, expansion: Expansion) -> None:
        """Add the expansion to x (T, d) when x is normed next by `norm` or `normed`, or by
        `settle`. Until then nothing else may read x."""

    def owes(self, x: torch.Tensor) -> bool:
        """Return whether an expansion is still to be added to x."""

    def settle(self, x: torch.Tensor) -> torch.Tensor:
        """Add to x what is owed to it, in place, and return x."""

    def normed(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return the RMS norm of x (T, in), with what is owed to it."""

    def gated(self, expansion: Expansion, y: torch.Tensor, activation: str) -> torch.Tensor:
        """Return gated_activation, one of GATED, of y (T, 2 F) with this expansion added."""

    def norm(
        self, layer: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, Expansion | None]:
        """Return `normed`, and `shrink` of it if that came with it."""

    def shrink(self, layer: str, x: torch.Tensor) -> Expansion | None:
        """Return x @ A, for the product by x that follows and for `add`; None: `add` computes it.

        At most one is in use at a time.
        """

    def add(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: Expansion | None = None
    ) -> None:
        """Add each token's LoRA of x (T, in) to y (T, out) in place; `shrunk` is from `norm` or
        `shrink`."""

    def embed(self, layer: str, tokens: torch.Tensor, y: torch.Tensor) -> None:
        """Do `add` for an embedding: x is one-hot at each of `tokens` (T,)."""

    def expansion(
        self, layer: str, x: torch.Tensor, y: torch.Tensor, shrunk: Expansion | None
    ) -> Expansion | None:
        """Do `add`, or return the part that the kernel that reads y next can add itself."""


class AddedLater:
    """Do what a LoraBatch does whose `add` computes all of it: no other product takes A along."""

    def few(self, layer: str) -> None:
        return None

    def expanded(self, layer: str, shrunk: torch.Tensor) -> Expansion:
        raise AssertionError("no kernel takes the ranks of this batch")

    def gated(self, expansion: Expansion, y: torch.Tensor, activation: str) -> torch.Tensor:
        raise AssertionError("this batch makes no expansion")

    def owe(self, x: torch.Tensor, expansion: Expansion) -> None:
        raise AssertionError("this batch makes no expansion")

    def owes(self, x: torch.Tensor) -> bool:
        return False

    def settle(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def normed(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return rms_norm(x, weight, eps)

    def norm(
        self, layer: str, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, None]:
        return rms_norm(x, weight, eps), None

    def shrink(self, layer: str, x: torch.Tensor) -> None:
        return None
