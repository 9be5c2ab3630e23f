"""Define the attention of a decode step. torch_decode.py and fused.py implement it."""

from dataclasses import dataclass
from typing import Protocol

import torch

from deployments.engine.kernels.types import Expansion, Rope


class DecodeAttention(Protocol):
    """Attend over the KV cache; rows of different lengths run together.

    `expansion` is the LoRA part of the product that gave qkv or q, not yet added to it.
    """

    def self_attention(
        self,
        qkv: torch.Tensor,
        expansion: Expansion | None,
        layer: int,
        *,
        scale: float,
        bias: torch.Tensor | None = None,
        rope: Rope | None = None,
    ) -> torch.Tensor:
        """Write the newest keys and values to the cache and attend over the row's own positions.

        Args:
            qkv: (B, H * G + 2 H, D), G query heads for each key/value head. May be changed.
            bias: (H, S) added to a score by distance from the newest position.

        Returns:
            (B, H * G * D)
        """

    def cross_attention(
        self, q: torch.Tensor, expansion: Expansion | None, layer: int, *, scale: float
    ) -> torch.Tensor:
        """Return q (B, H, D) attended over the prompt at the end of the row: (B, H * D)."""


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Hold the rows of a decode step; tokens (B,) are their newest, not yet in the cache."""

    tokens: torch.Tensor
    attention: DecodeAttention
