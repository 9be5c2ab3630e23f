"""Run Llama and its relatives, as their descriptions (architectures.py) say."""

from typing import Any

import torch

from deployments.engine.attention.kv_cache import DecodeBatch, KvCache
from deployments.engine.attention.prefill import PrefillBatch
from deployments.engine.lora.layers import LoraBatch
from deployments.engine.models.architectures import describe
from deployments.engine.models.base import KvShape, TorchBatches
from deployments.engine.models.linear import LMHead
from deployments.engine.models.stack import Stack

EMBEDDING = "model.embed_tokens"  # its path in every base model of this kind


class LlamaModel(TorchBatches):
    """Implement Model (base.py). Takes the weights out of `model`.

    Args:
        num_positions: positions of one answer, prompt included.
    """

    can_split_prompts = True
    keeps_prompts_at_end = False

    def __init__(self, model: Any, dtype: torch.dtype, num_positions: int) -> None:
        about = self._about = describe(model, num_positions)
        stack = self._stack = Stack("model", model.model, about, dtype, num_positions)
        weight = stack.embedding.weight
        self._head = LMHead(model.lm_head, model.model.embed_tokens, weight)
        ends = [stack.embedding.lora_layer, self._head.lora_layer]
        self.lora_layers = [*ends, *stack.lora_layers]
        self.kv_shape = KvShape(len(stack.layers), about.num_kv_heads, about.head_dim, dtype)
        self.vocab_size = self._head.out_features
        self.device = weight.device

    def prefill(self, cache: KvCache, batch: PrefillBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Read the tokens of many prompts; returns the states (T, d) behind them."""
        about = self._about
        x = self._stack.embed(batch.tokens, lora)
        ropes = self._stack.ropes_at(batch.positions)
        for i, (layer, kind) in enumerate(self._stack.layers):
            q, kv = layer.rotated(layer.project(x, lora), ropes.get(kind.rope))
            cache.write(i, batch.where, kv)
            attended = batch.attention(
                q,
                cache.layers[i],
                kv_scales=cache.scales[i],
                scale=about.attention_scale,
                is_causal=True,
                window=kind.window,
                softcap=about.attention_cap,
            )
            x = layer.after_attention(x, attended, lora)
        return x if lora is None else lora.settle(x)

    def decode(self, cache: KvCache, batch: DecodeBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Take the rows one position further; returns their states (B, d)."""
        x = self._stack.embed(batch.tokens, lora)
        for i, (layer, _) in enumerate(self._stack.layers):
            attended = self._stack.self_attention(i, x, batch, lora)
            x = layer.after_attention(x, attended, lora)
        return x if lora is None else lora.settle(x)

    def logits(self, hidden: torch.Tensor, lora: LoraBatch | None = None) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d)."""
        return self._stack.logits(self._head, hidden, lora)
