"""Attend with Triton kernels in a decode step. Imported only where they run.

Everything is in tensors of fixed shape, so that a step can be captured as a CUDA graph.
"""

import functools

import torch

from deployments.engine.attention.kv_cache import KvCache
from deployments.engine.kernels.ops import Expansion, HeadNorm, Rope
from deployments.engine.kernels.triton_attention import cross_attention, decode_attention
from deployments.engine.kernels.triton_prefill import prefill_attention


class TritonDecodeAttention:
    """Implement DecodeAttention (kv_cache.py) with kernels that find each row through tensors.

    Args:
        starts: (B,) cache position where each row begins.
        ends: (B,) where each row ends: start + capacity.
        positions: (B,) own positions filled so far.
        prompts: (B,) prompt positions at the end of the row.
        is_invariant, shares_rows: as `decode_attention` says.
    """

    def __init__(
        self,
        cache: KvCache,
        starts: torch.Tensor,
        ends: torch.Tensor,
        positions: torch.Tensor,
        prompts: torch.Tensor,
        *,
        is_invariant: bool = False,
        shares_rows: bool = False,
    ) -> None:
        self._is_invariant, self._shares_rows = is_invariant, shares_rows
        self._layers, self._scales = cache.layers, cache.scales
        self.positions = positions
        self._own = (starts, positions)
        self._prompts = (ends - prompts, prompts)

    def self_attention(
        self,
        qkv: torch.Tensor,
        expansion: Expansion | None,
        layer: int,
        *,
        scale: float,
        bias: torch.Tensor | None = None,
        norm: HeadNorm | None = None,
        rope: Rope | None = None,
        window: int | None = None,
        softcap: float | None = None,
        with_prompt: bool = False,
    ) -> torch.Tensor:
        cached = self._layers[layer]
        return decode_attention(
            qkv,
            expansion,
            cached,
            *self._own,
            kv_scales=self._scales[layer],
            bias=bias,
            norm=norm,
            rope=rope,
            scale=scale,
            window=window,
            softcap=softcap,
            is_invariant=self._is_invariant,
            shares_rows=self._shares_rows,
            prompts=self._prompts if with_prompt else None,
        )

    def cross_attention(
        self,
        q: torch.Tensor,
        expansion: Expansion | None,
        layer: int,
        *,
        scale: float,
        softcap: float | None = None,
    ) -> torch.Tensor:
        cached = self._layers[layer]
        if softcap is not None or q.shape[1] != cached.shape[2]:
            assert expansion is None, "the kernel for prompts adds no adapters"
            return prefill_attention(
                q,
                cached,
                blocks=self._blocks,
                kv_scales=self._scales[layer],
                scale=scale,
                is_causal=False,
                softcap=softcap,
            )
        return cross_attention(
            q,
            expansion,
            cached,
            *self._prompts,
            kv_scales=self._scales[layer],
            scale=scale,
            is_invariant=self._is_invariant,
        )

    @functools.cached_property
    def _blocks(self) -> torch.Tensor:
        """Return each row's query as a prompt of one token for the prefill kernel (B, 5), which
        knows grouped queries and caps."""
        starts, counts = self._prompts
        row = torch.arange(len(starts), device=starts.device)
        one = torch.ones_like(row)
        return torch.stack([row, one, one - 1, starts, counts], 1).int()
