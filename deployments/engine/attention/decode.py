"""Define a decode step's attention, and run it with Triton kernels.

`TritonDecodeAttention` keeps everything in tensors of fixed shape, so that the step can be captured
as a CUDA graph. `TorchDecodeAttention` (torch_decode.py) computes the same on any device.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.kernels.attention import cross_attention, decode_attention
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
        """Attend with q (B, H, D) over the row's prompt, which is cached at the end of the row.

        Returns:
            (B, H * D)
        """


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Hold the rows of a decode step; tokens (B,) are their newest, not yet in the cache."""

    tokens: torch.Tensor
    attention: DecodeAttention


class TritonDecodeAttention:
    """Attend with kernels that find each row through tensors.

    Args:
        starts: (B,) cache position where each row begins.
        ends: (B,) where each row ends: start + capacity.
        positions: (B,) own positions filled so far.
        prompts: (B,) prompt positions at the end of the row.
    """

    def __init__(
        self,
        cache: KvCache,
        starts: torch.Tensor,
        ends: torch.Tensor,
        positions: torch.Tensor,
        prompts: torch.Tensor,
    ) -> None:
        self._cache = cache
        self._starts, self._positions = starts, positions
        self._prompt_starts, self._prompts = ends - prompts, prompts

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
        return decode_attention(
            qkv,
            expansion,
            self._cache.layers[layer],
            self._starts,
            self._positions,
            bias=bias,
            rope=rope,
            scale=scale,
        )

    def cross_attention(
        self, q: torch.Tensor, expansion: Expansion | None, layer: int, *, scale: float
    ) -> torch.Tensor:
        cached = self._cache.layers[layer]
        return cross_attention(
            q, expansion, cached, self._prompt_starts, self._prompts, scale=scale
        )
