"""Describe the linear layers that adapters change, and the stacked weights of all adapters."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LoraModule:
    """Name one linear layer of the base model inside a fused one: output columns [start, stop)."""

    path: str  # in the base model, e.g. "model.layers.0.self_attn.q_proj"
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """Describe a fused linear layer that adapters may change."""

    name: str
    in_features: int
    modules: tuple[LoraModule, ...]


@dataclass(slots=True)
class LoraStack:
    """Hold one module's weights of every slot. a: (N, R, in); b: (N, R, out)."""

    a: torch.Tensor
    b: torch.Tensor
