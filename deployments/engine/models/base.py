"""Define what every base model provides to the fast decoder, and the output layer they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from deployments.engine.attention.int8_kv_cache import SCALE_DTYPE, Int8KvCache
from deployments.engine.attention.kv_cache import DecodeBatch, KvCache
from deployments.engine.attention.prefill import PrefillBatch
from deployments.engine.attention.torch_decode import TorchDecodeAttention
from deployments.engine.host_memory import numbers_on
from deployments.engine.kernels.backend import are_fused
from deployments.engine.lora.layers import LoraBatch, LoraLayer
from deployments.engine.lora.pool import LoraPool
from deployments.engine.models.embedding import Embedding
from deployments.engine.models.linear import AdaptedLinear


@dataclass(frozen=True, slots=True)
class KvShape:
    """Describe one position of the KV cache; it decides how many bytes a position takes.

    dtype: of the activations, and of keys and values unless these are int8.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype
    is_int8: bool = False

    @property
    def bytes_per_position(self) -> int:
        head = self.head_dim * self.dtype.itemsize
        if self.is_int8:
            head = self.head_dim + SCALE_DTYPE.itemsize
        return self.num_layers * 2 * self.num_heads * head

    @property
    def kept_in(self) -> str:
        """Return the name of the dtype of keys and values."""
        return "int8" if self.is_int8 else str(self.dtype).removeprefix("torch.")

    def new_cache(self, capacities: Sequence[int], device: torch.device) -> KvCache:
        """Return an empty cache whose rows have these capacities."""
        return (Int8KvCache if self.is_int8 else KvCache)(
            capacities,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=device,
        )


class Model(Protocol):
    """Hold a base model's weights and run its forward passes over the KV cache.

    The decoder keeps rows, adapters and sampling; a model keeps no state between calls.
    """

    can_split_prompts: bool
    keeps_prompts_at_end: bool  # then a decode step gives the first token
    lora_layers: list[LoraLayer]  # the fused linear layers that adapters may change
    kv_shape: KvShape
    vocab_size: int
    device: torch.device
    is_invariant: bool  # whether a row's logits depend on nothing that is computed beside it

    def lora_batch(
        self, pool: LoraPool, slots: Sequence[int], counts: Sequence[int] | None = None
    ) -> Any:
        """Return what `prefill` and `decode` take as `lora`; arguments of LoraPool.torch_batch."""

    def decode_batch(
        self,
        cache: KvCache,
        tokens: torch.Tensor,
        rows: Sequence[int],
        positions: Sequence[int],
        prompts: Sequence[int],
    ) -> DecodeBatch:
        """Return what `decode` takes; arguments of TorchDecodeAttention."""

    def prefill(self, cache: KvCache, batch: PrefillBatch, lora: Any) -> torch.Tensor:
        """Write prompt tokens to the cache; returns the states (T, d) behind them."""

    def decode(self, cache: KvCache, batch: DecodeBatch, lora: Any) -> torch.Tensor:
        """Write the batch's tokens to the cache; returns the states (B, d) after them."""

    def logits(self, hidden: torch.Tensor, lora: Any = None) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d); `lora` is the states' own."""


class TorchBatches:
    """Make the batches of a model that computes with torch."""

    device: torch.device
    kv_shape: KvShape
    lora_layers: list[LoraLayer]
    is_invariant = False

    @property
    def products(self) -> list[AdaptedLinear | None]:
        """Return the model's products, None for a quantised output layer."""
        bases = [layer.base for layer in self.lora_layers]
        assert all(b is None or isinstance(b, AdaptedLinear | Embedding) for b in bases)
        return [b for b in bases if b is None or isinstance(b, AdaptedLinear)]

    def keep_order(self) -> bool:
        """Compute each row's sums in one order from now on, whatever is computed beside it; returns
        whether that is possible by all weights."""
        self.is_invariant = all(own is not None and own.keep_order() for own in self.products)
        return self.is_invariant

    def lora_batch(
        self, pool: LoraPool, slots: Sequence[int], counts: Sequence[int] | None = None
    ) -> LoraBatch | None:
        in_kernels = are_fused(self.device.type)
        if not (self.is_invariant or in_kernels):
            return pool.torch_batch(slots, counts)
        if not (self.is_invariant or any(slots)):
            return None
        own = list(slots)
        if counts is not None:
            own = [slot for slot, count in zip(slots, counts, strict=True) for _ in range(count)]
        if not in_kernels:
            return pool.row_batch(own)
        all_slots = numbers_on(self.device, own)
        return pool.triton_batch(all_slots, is_invariant=self.is_invariant)

    def decode_batch(
        self,
        cache: KvCache,
        tokens: torch.Tensor,
        rows: Sequence[int],
        positions: Sequence[int],
        prompts: Sequence[int],
    ) -> DecodeBatch:
        if not self.is_invariant:
            return DecodeBatch(tokens, TorchDecodeAttention(cache, rows, positions, prompts))
        from deployments.engine.cpu.row_batches import RowDecodeAttention

        return DecodeBatch(tokens, RowDecodeAttention(cache, rows, positions, prompts))
