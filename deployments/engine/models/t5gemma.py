"""Run T5Gemma and T5Gemma 2: an encoder and a decoder of Gemma's layers (stack.py).

The encoder runs once for a prompt. Its keys and values for every decoder layer are cached at the
end of the row, the decoder's own at the front. T5Gemma's decoder attends to the prompt in a part of
the layer of its own; T5Gemma 2's sees answer and prompt under one softmax, by the same products.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from deployments.engine.attention.kv_cache import DecodeBatch, KvCache
from deployments.engine.attention.prefill import PrefillBatch
from deployments.engine.kernels.ops import rms_norm
from deployments.engine.lora.layers import LoraBatch
from deployments.engine.models.architectures import (
    GEMMA_2,
    GEMMA_3,
    Architecture,
    Description,
    describe_stack,
    unknown_field,
    unsupported_stack,
)
from deployments.engine.models.base import KvShape, TorchBatches
from deployments.engine.models.linear import FusedLinear, LMHead
from deployments.engine.models.stack import Stack
from deployments.engine.models.weights import norm_weight

T5GEMMA_MODELS: Mapping[str, Architecture] = {
    each.model_class: each
    for each in (
        Architecture(
            "T5GemmaForConditionalGeneration",
            "T5Gemma",
            norms="both",
            norm_offset=1.0,
            embedding_is_scaled=True,
            reads=GEMMA_2 | {"is_decoder", "cross_attention_hidden_size"},
            to_prompt="apart",
        ),
        Architecture(
            "T5Gemma2ForConditionalGeneration",
            "T5Gemma 2 (text)",
            norms="both",
            norm_offset=1.0,
            query_key_norms="head",
            embedding_is_scaled=True,
            reads=GEMMA_3,
            to_prompt="merged",
        ),
    )
}
# Of what holds the halves' own configurations; no image is read.
_WHOLE = frozenset(
    "encoder decoder text_config vision_config vocab_size tie_word_embeddings mm_tokens_per_image "
    "boi_token_index eoi_token_index image_token_index".split()
)


def unsupported_by_t5gemma(model: Any, num_positions: int) -> str | None:
    """Return why this model, one of T5GEMMA_MODELS, cannot run here. Returns None if it can.

    Args:
        num_positions: of the longest answer, prompt included.
    """
    config, about = model.config, T5GEMMA_MODELS[type(model).__name__]
    if (unknown := unknown_field(config, _WHOLE)) is not None:
        return unknown
    encoder, found = config.encoder, None
    if about.to_prompt == "merged":
        found, encoder = unknown_field(encoder, _WHOLE), encoder.text_config
    found = found or unsupported_stack(encoder, about, num_positions)
    if found is not None:
        return f"encoder: {found}"
    found = unsupported_stack(config.decoder, about, num_positions)
    return None if found is None else f"decoder: {found}"


class T5GemmaModel(TorchBatches):
    """Implement Model (base.py). Takes the weights out of `model`.

    Args:
        num_positions: positions of one answer, prompt included.
    """

    can_split_prompts = False  # the encoder sees the whole prompt in every layer
    keeps_prompts_at_end = True

    def __init__(self, model: Any, dtype: torch.dtype, num_positions: int) -> None:
        architecture, inner = T5GEMMA_MODELS[type(model).__name__], model.model
        self._is_merged = architecture.to_prompt == "merged"
        encoder, path = inner.encoder, "model.encoder"
        if self._is_merged:
            encoder, path = encoder.text_model, f"{path}.text_model"
            _drop(inner.encoder.vision_tower)
        self._encoder, self._decoder = (
            Stack(name, stack, describe_stack(stack.config, architecture), dtype, num_positions)
            for name, stack in ((path, encoder), ("model.decoder", inner.decoder))
        )
        about = self._decoder.about
        self._cross = [
            _Cross(f"model.decoder.layers.{i}", layer, dtype, about)
            for i, layer in enumerate(inner.decoder.layers)
            if not self._is_merged
        ]
        weight = self._decoder.embedding.weight
        self._head = LMHead(model.lm_head.out_proj, inner.decoder.embed_tokens, weight)
        self.lora_layers = [*self._encoder.lora_layers, *self._decoder.lora_layers]
        self.lora_layers += [own for cross in self._cross for own in cross.lora_layers]
        self.lora_layers.append(self._head.lora_layer)
        self.kv_shape = KvShape(len(about.layers), about.num_kv_heads, about.head_dim, dtype)
        self.vocab_size = self._head.out_features
        self.device = weight.device

    def prefill(self, cache: KvCache, batch: PrefillBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Run the encoder over whole prompts and cache the keys and values for the decoder."""
        about = self._encoder.about
        x = self._encoder.embed(batch.tokens, lora)
        ropes = self._encoder.ropes_at(batch.positions)
        for layer, kind in self._encoder.layers:
            q, kv = layer.rotated(layer.project(x, lora), ropes.get(kind.rope))
            window, ahead = self._both_ways(kind.window)
            attended = batch.attention(
                q,
                kv,
                scale=about.attention_scale,
                is_causal=False,
                window=window,
                ahead=ahead,
                softcap=about.attention_cap,
            )
            x = layer.after_attention(x, attended, lora)
        encoded = self._encoder.normed(x)
        for i, kv in enumerate(self._keys_values(encoded, lora)):
            cache.write(i, batch.where, kv)
        return encoded

    def decode(self, cache: KvCache, batch: DecodeBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Take the rows one position further; returns their states (B, d)."""
        x = self._decoder.embed(batch.tokens, lora)
        for i, (layer, _) in enumerate(self._decoder.layers):
            attended = self._decoder.self_attention(i, x, batch, lora)
            x = layer.add_attended(x, attended, lora)
            if self._cross:
                x = self._cross[i].attend(i, x, batch, lora)
            x = layer.mlp(x, lora)
        return x

    def logits(self, hidden: torch.Tensor, lora: LoraBatch | None = None) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d)."""
        return self._decoder.logits(self._head, hidden, lora)

    def _keys_values(self, encoded: torch.Tensor, lora: LoraBatch | None) -> Iterator[torch.Tensor]:
        """Yield what each decoder layer sees (T, 2, H, D) of the encoder's states (T, d)."""
        for cross in self._cross:
            yield cross.keys_values(encoded, lora)
        if self._is_merged:
            for layer, _ in self._decoder.layers:
                yield layer.rotated(layer.project(encoded, lora, is_normed=True), None)[1]

    def _both_ways(self, window: int | None) -> tuple[int | None, int | None]:
        """Return how many positions a token of a prompt sees, its own the last, and how many behind
        it, as transformers' masks do."""
        if window is None:
            return None, None
        if self._is_merged:
            return (window + 1) // 2, window // 2
        return window + 1, window


class _Cross:
    """Hold a decoder layer's attention to the prompt."""

    def __init__(self, path: str, layer: Any, dtype: torch.dtype, about: Description) -> None:
        module, inner, offset = layer.cross_attn, f"{path}.cross_attn", 1.0
        self._about = about
        self._before = norm_weight(layer.pre_cross_attn_layernorm, dtype, offset)
        self._after = norm_weight(layer.post_cross_attn_layernorm, dtype, offset)
        self._q, self._kv, self._o = (
            FusedLinear(
                f"{inner}.{letters}",
                {f"{inner}.{letter}_proj": getattr(module, f"{letter}_proj") for letter in letters},
                dtype,
            )
            for letters in ("q", "kv", "o")
        )
        self.lora_layers = [each.lora_layer for each in (self._q, self._kv, self._o)]

    def keys_values(self, encoded: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        kv = self._kv(encoded, lora)
        return kv.view(len(kv), 2, self._about.num_kv_heads, self._about.head_dim)

    def attend(
        self, number: int, x: torch.Tensor, batch: DecodeBatch, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Return the states x (B, d) of the layer of this number, with what it sees added."""
        about = self._about
        q = self._q.after_norm(x, self._before, about.eps, lora)
        attended = batch.attention.cross_attention(
            q.view(len(x), about.num_heads, about.head_dim),
            None,
            number,
            scale=about.attention_scale,
            softcap=about.attention_cap,
        )
        return x.add_(rms_norm(self._o(attended, lora), self._after, about.eps))


def _drop(module: torch.nn.Module) -> None:
    """Free the memory of weights that no text needs."""
    for parameter in module.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
