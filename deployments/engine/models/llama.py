"""Run Llama-style models: RMS norm, RoPE, grouped-query attention, gated MLP.

These are Llama, SmolLM2, Llama 3 (with the RoPE scaling that transformers computes) and Qwen2
(bias on q, k and v). q, k and v are one product, gate and up another.
"""

from typing import Any

import torch

from deployments.engine.attention.kv_cache import DecodeBatch, KvCache
from deployments.engine.attention.prefill import PrefillBatch
from deployments.engine.kernels.ops import Rope, gated_activation, rms_norm
from deployments.engine.lora.layers import LoraBatch
from deployments.engine.models.base import KvShape, TorchBatches
from deployments.engine.models.linear import FusedLinear, LMHead
from deployments.engine.models.weights import norm_weight


class LlamaModel(TorchBatches):
    """Implement Model (base.py). Takes the weights out of `model`.

    Args:
        num_positions: positions of one answer, prompt included.
    """

    can_split_prompts = True
    keeps_prompts_at_end = False

    def __init__(self, model: Any, dtype: torch.dtype, num_positions: int) -> None:
        config = model.config
        attention = model.model.layers[0].self_attn
        self._head_dim: int = attention.head_dim
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self._eps: float = config.rms_norm_eps
        self._act: str = config.hidden_act
        self._embedding: torch.Tensor = model.model.embed_tokens.weight.data.to(dtype)
        self._head = LMHead(model.lm_head, model.model.embed_tokens, self._embedding)
        self._norm = norm_weight(model.model.norm, dtype)
        positions = torch.arange(num_positions, device=self._embedding.device)[None]
        cos, sin = model.model.rotary_emb(self._embedding[:1], positions)
        half = self._head_dim // 2
        self._rope = Rope(cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1))
        self._layers = [
            _Layer(f"model.layers.{i}", layer, dtype) for i, layer in enumerate(model.model.layers)
        ]
        self.lora_layers = [adapted for layer in self._layers for adapted in layer.lora_layers]
        self.kv_shape = KvShape(len(self._layers), self._num_kv_heads, self._head_dim, dtype)
        self.vocab_size = self._head.vocab_size
        self.device = self._embedding.device

    def prefill(self, cache: KvCache, batch: PrefillBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Read the tokens of many prompts; returns the states (T, d) behind them."""
        x = self._embedding[batch.tokens]
        rope = self._rope.at(batch.positions)
        h, kv, dim = self._num_heads, self._num_kv_heads, self._head_dim
        for i, layer in enumerate(self._layers):
            qkv = layer.qkv.after_norm(x, layer.norm_1, self._eps, lora)
            qkv = qkv.view(len(x), h + 2 * kv, dim)
            rope.apply_rotary_(qkv[:, : h + kv])
            cache.write(i, batch.where, qkv[:, h:].view(len(x), 2, kv, dim))
            attended = batch.attention(qkv[:, :h], cache.layers[i], scale=dim**-0.5, is_causal=True)
            x = self._after_attention(layer, x, attended, lora)
        return x

    def decode(self, cache: KvCache, batch: DecodeBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Take the rows one position further; returns their states (B, d)."""
        x = self._embedding[batch.tokens]
        shape = (len(x), self._num_heads + 2 * self._num_kv_heads, self._head_dim)
        for i, layer in enumerate(self._layers):
            qkv, expansion = layer.qkv.before_attention(x, layer.norm_1, self._eps, lora)
            attended = batch.attention.self_attention(
                qkv.view(shape), expansion, i, scale=self._head_dim**-0.5, rope=self._rope
            )
            x = self._after_attention(layer, x, attended, lora)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d)."""
        return self._head(rms_norm(hidden, self._norm, self._eps))

    def _after_attention(
        self, layer: "_Layer", x: torch.Tensor, attended: torch.Tensor, lora: LoraBatch | None
    ) -> torch.Tensor:
        x = layer.o.add_to(x, attended, lora)
        inner = layer.gate_up.after_norm(x, layer.norm_2, self._eps, lora)
        return layer.down.add_to(x, gated_activation(inner, self._act), lora)


class _Layer:
    def __init__(self, path: str, layer: Any, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.norm_1 = norm_weight(layer.input_layernorm, dtype)
        self.norm_2 = norm_weight(layer.post_attention_layernorm, dtype)
        self.qkv = FusedLinear(
            f"{path}.qkv",
            {
                f"{path}.self_attn.q_proj": attention.q_proj,
                f"{path}.self_attn.k_proj": attention.k_proj,
                f"{path}.self_attn.v_proj": attention.v_proj,
            },
            dtype,
        )
        self.o = FusedLinear(f"{path}.o", {f"{path}.self_attn.o_proj": attention.o_proj}, dtype)
        self.gate_up = FusedLinear(
            f"{path}.gate_up",
            {f"{path}.mlp.gate_proj": mlp.gate_proj, f"{path}.mlp.up_proj": mlp.up_proj},
            dtype,
        )
        self.down = FusedLinear(f"{path}.down", {f"{path}.mlp.down_proj": mlp.down_proj}, dtype)

        fused = (self.qkv, self.o, self.gate_up, self.down)
        self.lora_layers = [layer.lora_layer for layer in fused]
