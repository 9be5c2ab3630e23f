"""Run Llama and its relatives, as their descriptions (architectures.py) say.

q, k and v are one product, gate and up another.
"""

from typing import Any

import torch

from deployments.engine.attention.kv_cache import DecodeBatch, KvCache
from deployments.engine.attention.prefill import PrefillBatch
from deployments.engine.kernels.ops import (
    Expansion,
    Rope,
    normalise_,
    rms_norm,
    whole_rows,
)
from deployments.engine.lora.layers import LoraBatch
from deployments.engine.models.architectures import SHARED_ROPE, Description, describe, ropes_of
from deployments.engine.models.base import KvShape, TorchBatches
from deployments.engine.models.embedding import Embedding
from deployments.engine.models.linear import FusedLinear, LMHead
from deployments.engine.models.weights import norm_weight

EMBEDDING = "model.embed_tokens"  # its path in every base model of this kind


class LlamaModel(TorchBatches):
    """Implement Model (base.py). Takes the weights out of `model`.

    Args:
        num_positions: positions of one answer, prompt included.
    """

    can_split_prompts = True
    keeps_prompts_at_end = False

    def __init__(self, model: Any, dtype: torch.dtype, num_positions: int) -> None:
        about = self._about = describe(model)
        embedding: torch.Tensor = model.model.embed_tokens.weight.data.to(dtype)
        self._embedding = Embedding(EMBEDDING, embedding)
        self._head = LMHead(model.lm_head, model.model.embed_tokens, embedding)
        self._norm = norm_weight(model.model.norm, dtype, about.architecture.norm_offset)
        # Gemma rounds the scale to the dtype of the weights.
        self._embedding_scale = float(torch.tensor(about.embedding_scale, dtype=dtype))
        self._ropes = _ropes(model, about, embedding, num_positions)
        self._layers = [
            _Layer(f"model.layers.{i}", layer, dtype, about)
            for i, layer in enumerate(model.model.layers)
        ]
        ends = [self._embedding.lora_layer, self._head.lora_layer]
        self.lora_layers = ends + [own for layer in self._layers for own in layer.lora_layers]
        self.kv_shape = KvShape(len(self._layers), about.num_kv_heads, about.head_dim, dtype)
        self.vocab_size = self._head.out_features
        self.device = embedding.device

    def prefill(self, cache: KvCache, batch: PrefillBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Read the tokens of many prompts; returns the states (T, d) behind them."""
        about = self._about
        x = self._embed(batch.tokens, lora)
        ropes = {kind: rope.at(batch.positions) for kind, rope in self._ropes.items()}
        h, kv, dim = about.num_heads, about.num_kv_heads, about.head_dim
        for i, (layer, kind) in enumerate(zip(self._layers, about.layers, strict=True)):
            qkv = layer.project(x, lora).view(len(x), h + 2 * kv, dim)
            if kind.rope is not None:
                ropes[kind.rope].apply_rotary_(qkv[:, : h + kv])
            cache.write(i, batch.where, qkv[:, h:].view(len(x), 2, kv, dim))
            attended = batch.attention(
                qkv[:, :h],
                cache.layers[i],
                kv_scales=cache.scales[i],
                scale=about.attention_scale,
                is_causal=True,
                window=kind.window,
                softcap=about.attention_cap,
            )
            x = layer.after_attention(x, attended, lora)
        return x

    def decode(self, cache: KvCache, batch: DecodeBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Take the rows one position further; returns their states (B, d)."""
        about = self._about
        x = self._embed(batch.tokens, lora)
        shape = (len(x), about.num_heads + 2 * about.num_kv_heads, about.head_dim)
        for i, (layer, kind) in enumerate(zip(self._layers, about.layers, strict=True)):
            qkv, expansion = layer.before_attention(x, lora)
            attended = batch.attention.self_attention(
                qkv.view(shape),
                expansion,
                i,
                scale=about.attention_scale,
                rope=None if kind.rope is None else self._ropes[kind.rope],
                window=kind.window,
                softcap=about.attention_cap,
            )
            x = layer.after_attention(x, attended, lora)
        return x

    def logits(self, hidden: torch.Tensor, lora: LoraBatch | None = None) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d)."""
        about = self._about
        logits = self._head(rms_norm(hidden, self._norm, about.eps), lora)
        if about.logits_divisor != 1.0:
            logits = logits.div_(about.logits_divisor)
        if about.logits_cap is not None:
            for piece in whole_rows(logits.div_(about.logits_cap)):
                piece.tanh_()
            logits.mul_(about.logits_cap)
        return logits

    def _embed(self, tokens: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        x = self._embedding(tokens, lora)
        return x if self._embedding_scale == 1.0 else x.mul_(self._embedding_scale)


def _ropes(
    model: Any, about: Description, like: torch.Tensor, num_positions: int
) -> dict[str, Rope]:
    """Return the tables of rotations that the layers use, in the dtype and on the device of `like`.

    Rows behind the longest answer only fill a row's capacity up: they are those of the last
    position, since a longer text would change a dynamic table.
    """
    tables = {}
    for kind, parameters in ropes_of(model.config).items():
        if all(layer.rope != kind for layer in about.layers):
            continue
        longest = model.config.max_position_embeddings
        if parameters.get("rope_type") == "longrope":
            longest = parameters["original_max_position_embeddings"]
        positions = torch.arange(num_positions, device=like.device).clamp_(max=longest - 1)
        more = () if kind == SHARED_ROPE else (kind,)
        cos, sin = model.model.rotary_emb(like[:1], positions[None], *more)
        half = cos.shape[-1] // 2
        tables[kind] = Rope(cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1))
    return tables


class _Layer:
    """Hold one layer: its norms (None where it has none) and its four products."""

    def __init__(self, path: str, layer: Any, dtype: torch.dtype, about: Description) -> None:
        attention, mlp, architecture = layer.self_attn, layer.mlp, about.architecture
        self._about = about
        before, after = _NORMS[architecture.norms]
        self._before, self._after = (
            [
                norm_weight(getattr(layer, name), dtype, architecture.norm_offset) if name else None
                for name in names
            ]
            for names in (before, after)
        )
        self._query_key_norms = _query_key_norms(attention, dtype, about)
        qkv, gate_up = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
        if architecture.is_fused:
            qkv, gate_up = ("qkv_proj",), ("gate_up_proj",)  # type: ignore[assignment]

        def fused(name: str, part: str, module: Any, names: tuple[str, ...]) -> FusedLinear:
            return FusedLinear(
                f"{path}.{name}", {f"{path}.{part}.{n}": getattr(module, n) for n in names}, dtype
            )

        self._qkv = fused("qkv", "self_attn", attention, qkv)
        self._o = fused("o", "self_attn", attention, ("o_proj",))
        self._gate_up = fused("gate_up", "mlp", mlp, gate_up)
        self._down = fused("down", "mlp", mlp, ("down_proj",))
        products = (self._qkv, self._o, self._gate_up, self._down)
        self.lora_layers = [product.lora_layer for product in products]

    def project(self, x: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        """Return queries, keys and values of x (T, d) side by side, normed, not yet rotated."""
        qkv = self._of_normed(self._qkv, x, self._before[0], lora)
        for columns, dims, weight in self._query_key_norms:
            about = self._about
            heads = qkv.view(len(x), -1, about.head_dim)[:, columns]
            normalise_(heads, weight, about.eps, dims)
        return qkv

    def before_attention(
        self, x: torch.Tensor, lora: LoraBatch | None
    ) -> tuple[torch.Tensor, Expansion | None]:
        """Do `project`, but leave the LoRA expansion, if any, to the attention where it can add it:
        not under a norm of queries and keys, and not of one module for all three."""
        norm = self._before[0]
        if norm is None or self._query_key_norms or self._about.architecture.is_fused:
            return self.project(x, lora), None
        return self._qkv.before_attention(x, norm, self._about.eps, lora)

    def after_attention(
        self, x: torch.Tensor, attended: torch.Tensor, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Return the states behind the layer, of x (T, d) before it and what attention gave."""
        x = self._add(self._o, x, attended, self._after[0], lora)
        about = self._about
        gated = self._gate_up.gated_after_norm(
            x, self._before[1], about.eps, lora, about.activation
        )
        return self._add(self._down, x, gated, self._after[1], lora)

    def _of_normed(
        self, linear: FusedLinear, x: torch.Tensor, norm: torch.Tensor | None, lora: Any
    ) -> torch.Tensor:
        if norm is None:
            return linear(x, lora)
        return linear.after_norm(x, norm, self._about.eps, lora)

    def _add(
        self,
        linear: FusedLinear,
        residual: torch.Tensor,
        x: torch.Tensor,
        norm: torch.Tensor | None,
        lora: LoraBatch | None,
    ) -> torch.Tensor:
        scale = self._about.residual_scale
        if norm is None and scale == 1.0:
            return linear.add_to(residual, x, lora)
        y = linear(x, lora)
        if norm is not None:
            y = rms_norm(y, norm, self._about.eps)
        return residual.add_(y, alpha=scale)


# Before attention and MLP, and after each.
_NORMS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "before": (("input_layernorm", "post_attention_layernorm"), ("", "")),
    "after": (("", ""), ("post_attention_layernorm", "post_feedforward_layernorm")),
    "both": (
        ("input_layernorm", "pre_feedforward_layernorm"),
        ("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
}


def _query_key_norms(
    attention: Any, dtype: torch.dtype, about: Description
) -> list[tuple[slice, tuple[int, ...], torch.Tensor]]:
    """Return which heads are normed together, over which dimensions, with which weight (h, D)."""
    kind, offset = about.architecture.query_key_norms, about.architecture.norm_offset
    if kind == "none":
        return []
    h, both = about.num_heads, about.num_heads + about.num_kv_heads
    q, k = (norm_weight(norm, dtype, offset) for norm in (attention.q_norm, attention.k_norm))
    if kind == "head":
        weight = torch.cat([q.expand(h, -1), k.expand(both - h, -1)])
        return [(slice(both), (-1,), weight)]
    shape = (-1, about.head_dim)
    return [(slice(h), (-2, -1), q.view(shape)), (slice(h, both), (-2, -1), k.view(shape))]
