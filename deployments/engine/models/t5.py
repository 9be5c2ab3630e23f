"""Run T5, mT5 and umT5: relative bias, cross-attention, gated or plain MLP.

The encoder runs once for a prompt. Its keys and values for every decoder layer are cached at the
end of the row, the decoder's own at the front. Three traps have tests: the head is tied by value,
not by configuration; each of the three scales its logits by a rule of its own; scores are not
divided by the square root of the head size. umT5 has a bias in each layer, others one for all.
"""

from typing import Any

import torch

from deployments.engine.attention.kv_cache import DecodeBatch, KvCache
from deployments.engine.attention.prefill import PrefillBatch
from deployments.engine.kernels.ops import ACTIVATIONS, activate, rms_norm
from deployments.engine.lora.layers import LoraBatch
from deployments.engine.models.architectures import unknown_field
from deployments.engine.models.base import KvShape, TorchBatches
from deployments.engine.models.linear import FusedLinear, LMHead
from deployments.engine.models.weights import norm_weight

# By the model's class: what people know it by, and what it has beyond T5.
T5_MODELS = {
    "T5ForConditionalGeneration": ("T5, Flan-T5", ()),
    "MT5ForConditionalGeneration": ("mT5", ()),
    "UMT5ForConditionalGeneration": ("umT5", ("a relative bias in each layer",)),
}
_FIELDS = frozenset(
    "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads dense_act_fn "
    "is_gated_act feed_forward_proj layer_norm_epsilon relative_attention_num_buckets "
    "relative_attention_max_distance scale_decoder_outputs tie_word_embeddings".split()
)


def unsupported_by_t5(model: Any, num_positions: int) -> str | None:
    """Return why this model, one of T5_MODELS, cannot run here, at whatever length. Returns
    None if it can."""
    if model.config.dense_act_fn not in ACTIVATIONS:
        return f"its activation is {model.config.dense_act_fn!r}; fast: {', '.join(ACTIVATIONS)}"
    return unknown_field(model.config, _FIELDS)


def _scales_logits(model: Any) -> bool:
    """Return whether the model's class in transformers divides by the square root of d_model."""
    if type(model).__name__ == "UMT5ForConditionalGeneration":
        return bool(model.config.tie_word_embeddings)
    if type(model).__name__ == "MT5ForConditionalGeneration":
        return False
    return bool(getattr(model.config, "scale_decoder_outputs", False))


class T5Model(TorchBatches):
    """Implement Model (base.py). Takes the weights out of `model`.

    Args:
        num_positions: positions of one answer, prompt included.
    """

    can_split_prompts = False  # the encoder sees the whole prompt in every layer
    keeps_prompts_at_end = True

    def __init__(self, model: Any, dtype: torch.dtype, num_positions: int) -> None:
        config = model.config
        self._num_heads: int = config.num_heads
        self._head_dim: int = config.d_kv
        self._eps: float = config.layer_norm_epsilon
        self._embedding: torch.Tensor = model.shared.weight.data.to(dtype)
        self._head = LMHead(model.lm_head, model.shared, self._embedding)
        self._output_scale = config.d_model**-0.5 if _scales_logits(model) else None
        self._encoder_norm = norm_weight(model.encoder.final_layer_norm, dtype)
        self._norm = norm_weight(model.decoder.final_layer_norm, dtype)
        # By key position - query position: -(S - 1) to S - 1 in the encoder, 0 to -(S - 1) in the
        # decoder.
        reach = torch.arange(num_positions, device=self._embedding.device)
        both_ways = torch.cat([-reach.flip(0), reach[1:]])
        self._encoder_biases = _relative_biases(model.encoder, both_ways, dtype)  # (H, 2S - 1)
        self._decoder_biases = _relative_biases(model.decoder, -reach, dtype)  # (H, S) by distance
        act: str = config.dense_act_fn
        gated = bool(config.is_gated_act)
        self._encoder = [
            _EncoderLayer(f"encoder.block.{i}.layer", block.layer, dtype, act, gated)
            for i, block in enumerate(model.encoder.block)
        ]
        self._decoder = [
            _DecoderLayer(f"decoder.block.{i}.layer", block.layer, dtype, act, gated)
            for i, block in enumerate(model.decoder.block)
        ]
        layers = (*self._encoder, *self._decoder)
        self.lora_layers = [adapted for layer in layers for adapted in layer.lora_layers]
        self.lora_layers.append(self._head.lora_layer)
        self.kv_shape = KvShape(len(self._decoder), self._num_heads, self._head_dim, dtype)
        self.vocab_size = self._head.out_features
        self.device = self._embedding.device

    def prefill(self, cache: KvCache, batch: PrefillBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Run the encoder over whole prompts and cache the keys and values for the decoder."""
        x = self._embedding[batch.tokens]
        heads = (self._num_heads, self._head_dim)
        for layer, bias in zip(self._encoder, self._encoder_biases, strict=True):
            qkv = layer.qkv.after_norm(x, layer.norm_1, self._eps, lora).view(len(x), 3, *heads)
            attended = batch.attention(qkv[:, 0], qkv[:, 1:], bias=bias, scale=1.0, is_causal=False)
            x = layer.o.add_before_norm(x, attended, lora)
            x = layer.mlp(x, self._eps, lora)
        x = x if lora is None else lora.settle(x)
        encoded = rms_norm(x, self._encoder_norm, self._eps)
        for i, decoder_layer in enumerate(self._decoder):
            kv = decoder_layer.cross_kv(encoded, lora)
            cache.write(i, batch.where, kv.view(len(x), 2, *heads))
        return encoded

    def decode(self, cache: KvCache, batch: DecodeBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Take the rows one position further; returns their states (B, d)."""
        h, dim, eps = self._num_heads, self._head_dim, self._eps
        x = self._embedding[batch.tokens]
        for i, (layer, bias) in enumerate(zip(self._decoder, self._decoder_biases, strict=True)):
            qkv, expansion = layer.qkv.before_attention(x, layer.norm_1, eps, lora)
            attended = batch.attention.self_attention(
                qkv.view(len(x), 3 * h, dim), expansion, i, scale=1.0, bias=bias
            )
            x = layer.o.add_before_norm(x, attended, lora)
            q, expansion = layer.cross_q.before_attention(x, layer.norm_2, eps, lora)
            attended = batch.attention.cross_attention(
                q.view(len(x), h, dim), expansion, i, scale=1.0
            )
            x = layer.cross_o.add_before_norm(x, attended, lora)
            x = layer.mlp(x, eps, lora)
        return x if lora is None else lora.settle(x)

    def logits(self, hidden: torch.Tensor, lora: LoraBatch | None = None) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d)."""
        normed = rms_norm(hidden, self._norm, self._eps)
        scale = self._output_scale
        return self._head(normed if scale is None else normed * scale, lora)


def _relative_biases(stack: Any, relative: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return each layer's bias (H, n) of relative (n,): key position - query position.

    A layer without a table of its own has the bias of the layer before, the same tensor.
    """
    biases: list[torch.Tensor] = []
    for block in stack.block:
        attention = block.layer[0].SelfAttention
        if attention.has_relative_attention_bias:
            table = attention.relative_attention_bias.weight.data
            buckets = _buckets(attention, relative)
            biases.append(table[buckets].t().contiguous().to(dtype))
        else:
            biases.append(biases[-1])
    return biases


def _buckets(attention: Any, relative: torch.Tensor) -> torch.Tensor:
    """Return transformers' bucket of each distance; umT5's attention knows its own arguments."""
    options = {
        "bidirectional": not attention.is_decoder,
        "num_buckets": attention.relative_attention_num_buckets,
        "max_distance": attention.relative_attention_max_distance,
    }
    is_umt5 = type(attention).__name__ == "UMT5Attention"
    buckets: torch.Tensor = attention._relative_position_bucket(
        relative, **({} if is_umt5 else options)
    )
    return buckets


class _Mlp:
    """Apply norm, feed-forward and residual to x (T, d)."""

    def __init__(self, path: str, layer: Any, dtype: torch.dtype, act: str, gated: bool) -> None:
        dense = layer.DenseReluDense
        names = ("wi_0", "wi_1") if gated else ("wi",)
        inner = f"{path}.DenseReluDense"
        self._norm = norm_weight(layer.layer_norm, dtype)
        self._wi = FusedLinear(
            f"{path}.wi", {f"{inner}.{name}": getattr(dense, name) for name in names}, dtype
        )
        self._wo = FusedLinear(f"{path}.wo", {f"{inner}.wo": dense.wo}, dtype)
        self._act, self._gated = act, gated
        self.lora_layers = [self._wi.lora_layer, self._wo.lora_layer]

    def __call__(self, x: torch.Tensor, eps: float, lora: LoraBatch | None) -> torch.Tensor:
        if self._gated:
            gated = self._wi.gated_after_norm(x, self._norm, eps, lora, self._act)
            return self._wo.add_before_norm(x, gated, lora)
        inner = self._wi.after_norm(x, self._norm, eps, lora)
        return self._wo.add_before_norm(x, activate(inner, self._act), lora)


class _EncoderLayer:
    def __init__(self, path: str, layers: Any, dtype: torch.dtype, act: str, gated: bool) -> None:
        attention = layers[0].SelfAttention
        inner = f"{path}.0.SelfAttention"
        self.norm_1 = norm_weight(layers[0].layer_norm, dtype)
        self.qkv = FusedLinear(
            f"{path}.0.qkv", {f"{inner}.{n}": getattr(attention, n) for n in "qkv"}, dtype
        )
        self.o = FusedLinear(f"{path}.0.o", {f"{inner}.o": attention.o}, dtype)
        self.mlp = _Mlp(f"{path}.{len(layers) - 1}", layers[-1], dtype, act, gated)
        self.lora_layers = [self.qkv.lora_layer, self.o.lora_layer, *self.mlp.lora_layers]


class _DecoderLayer(_EncoderLayer):
    def __init__(self, path: str, layers: Any, dtype: torch.dtype, act: str, gated: bool) -> None:
        super().__init__(path, layers, dtype, act, gated)
        attention = layers[1].EncDecAttention
        inner = f"{path}.1.EncDecAttention"
        self.norm_2 = norm_weight(layers[1].layer_norm, dtype)
        self.cross_q = FusedLinear(f"{path}.1.q", {f"{inner}.q": attention.q}, dtype)
        self.cross_kv = FusedLinear(
            f"{path}.1.kv", {f"{inner}.{n}": getattr(attention, n) for n in "kv"}, dtype
        )
        self.cross_o = FusedLinear(f"{path}.1.o", {f"{inner}.o": attention.o}, dtype)
        self.lora_layers += [
            self.cross_q.lora_layer,
            self.cross_kv.lora_layer,
            self.cross_o.lora_layer,
        ]
