"""Hold layers like Llama's, as their description (architectures.py) says.

q, k and v are one product, gate and up another.
"""

from collections.abc import Mapping
from typing import Any

import torch

from deployments.engine.attention.kv_cache import DecodeBatch
from deployments.engine.kernels.ops import (
    Expansion,
    HeadNorm,
    Rope,
    normalise_,
    rms_norm,
    rotate_,
    whole_rows,
)
from deployments.engine.lora.layers import LoraBatch
from deployments.engine.models.architectures import (
    SHARED_ROPE,
    Description,
    rope_limit,
    ropes_of,
)
from deployments.engine.models.embedding import Embedding
from deployments.engine.models.linear import FusedLinear, LMHead
from deployments.engine.models.weights import norm_weight


class Stack:
    """Hold one stack of layers: its embedding, its rotations, and the norm behind the last.

    Args:
        path: in the base model.
        stack: transformers' module of it.
        num_positions: of one answer, prompt included.
    """

    def __init__(
        self, path: str, stack: Any, about: Description, dtype: torch.dtype, num_positions: int
    ) -> None:
        self.about = about
        embedding: torch.Tensor = stack.embed_tokens.weight.data.to(dtype)
        self.embedding = Embedding(f"{path}.embed_tokens", embedding)
        # Gemma rounds the scale to the dtype of the weights.
        self._embedding_scale = float(torch.tensor(about.embedding_scale, dtype=dtype))
        # T5Gemma 2's end of an image has an embedding of its own, which is not scaled.
        end = getattr(stack.embed_tokens, "eoi_embedding", None)
        own = None if end is None else (stack.embed_tokens.eoi_token_index, end.data.to(dtype))
        self._unscaled = own
        self._norm = norm_weight(stack.norm, dtype, about.architecture.norm_offset)
        self._ropes = _ropes(stack, about, embedding, num_positions)
        layers = [
            Layer(f"{path}.layers.{i}", layer, dtype, about) for i, layer in enumerate(stack.layers)
        ]
        self.layers = list(zip(layers, about.layers, strict=True))
        self.lora_layers = [own for layer in layers for own in layer.lora_layers]

    def embed(self, tokens: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        x = self.embedding(tokens, lora)
        if self._embedding_scale != 1.0:
            x = x.mul_(self._embedding_scale)
        if self._unscaled is None:
            return x
        token, embedding = self._unscaled
        return torch.where((tokens == token)[:, None], embedding, x)

    def ropes_at(self, positions: torch.Tensor) -> Mapping[str | None, Rope]:
        """Return the rotations of tokens at these positions, by kind."""
        return {kind: rope.at(positions) for kind, rope in self._ropes.items()}

    def self_attention(
        self, number: int, x: torch.Tensor, batch: DecodeBatch, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Attend in a decode step with the states x (B, d) before the layer of this number."""
        about, (layer, kind) = self.about, self.layers[number]
        qkv, expansion = layer.before_attention(x, lora)
        return batch.attention.self_attention(
            qkv.view(len(x), -1, about.head_dim),
            expansion,
            number,
            scale=about.attention_scale,
            norm=layer.head_norm,
            rope=None if kind.rope is None else self._ropes[kind.rope],
            window=kind.window,
            softcap=about.attention_cap,
            with_prompt=about.architecture.to_prompt == "merged",
        )

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """Return the states x (n, d) behind the last layer, normed."""
        return rms_norm(x, self._norm, self.about.eps)

    def logits(self, head: LMHead, hidden: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d)."""
        about = self.about
        logits = head(self.normed(hidden), lora)
        if about.logits_divisor != 1.0:
            logits = logits.div_(about.logits_divisor)
        if about.logits_cap is not None:
            for piece in whole_rows(logits.div_(about.logits_cap)):
                piece.tanh_()
            logits.mul_(about.logits_cap)
        return logits


def _ropes(
    stack: Any, about: Description, like: torch.Tensor, num_positions: int
) -> dict[str, Rope]:
    """Return the rotations that the layers use, in the dtype and on the device of `like`."""
    used = {layer.rope for layer in about.layers}
    return {
        kind: rope_table(stack, kind, like, num_positions)
        for kind in ropes_of(stack.config)
        if kind in used
    }


def rope_table(stack: Any, kind: str, like: torch.Tensor, num_positions: int) -> Rope:
    """Return the rotations of layers of one kind, in the dtype and on the device of `like`.

    Rows behind the longest answer only fill a row's capacity up: they are those of the last
    position where a longer text would change the table.

    Args:
        stack: transformers' module of the layers.
    """
    positions = torch.arange(num_positions, device=like.device)
    limit = rope_limit(stack.config, ropes_of(stack.config)[kind])
    if limit is not None:
        positions.clamp_(max=limit - 1)
    more = () if kind == SHARED_ROPE else (kind,)
    cos, sin = stack.rotary_emb(like[:1], positions[None], *more)
    half = cos.shape[-1] // 2
    return Rope(cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1))


class Layer:
    """Hold one layer: its norms (None where it has none) and its four products."""

    def __init__(self, path: str, layer: Any, dtype: torch.dtype, about: Description) -> None:
        attention, mlp, architecture = layer.self_attn, layer.mlp, about.architecture
        self._about = about
        before, after = _NORMS[architecture.norms]
        self._before, self._after = (
            [
                norm_weight(_norm_of(layer, name), dtype, architecture.norm_offset)
                if name
                else None
                for name in names
            ]
            for names in (before, after)
        )
        self.head_norm, self._norms_of_all = _query_key_norms(attention, dtype, about)
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

    def project(
        self, x: torch.Tensor, lora: LoraBatch | None, *, is_normed: bool = False
    ) -> torch.Tensor:
        """Return queries, keys and values of x (T, d) side by side, before the norm of single heads
        and the rotation.

        is_normed: the norm before attention is not taken.
        """
        qkv = self._of_normed(self._qkv, x, None if is_normed else self._before[0], lora)
        heads = qkv.view(len(x), -1, self._about.head_dim)
        for columns, weight in self._norms_of_all:
            normalise_(heads[:, columns], weight, self._about.eps)
        return qkv

    def rotated(self, qkv: torch.Tensor, rope: Rope | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return queries (T, h, D), and keys and values (T, 2, H, D), of `project`, normed by head
        and rotated by token."""
        h, kv, dim = self._about.num_heads, self._about.num_kv_heads, self._about.head_dim
        heads = qkv.view(len(qkv), h + 2 * kv, dim)
        rotate_(heads[:, : h + kv], self.head_norm, rope)
        return heads[:, :h], heads[:, h:].view(len(qkv), 2, kv, dim)

    def before_attention(
        self, x: torch.Tensor, lora: LoraBatch | None
    ) -> tuple[torch.Tensor, Expansion | None]:
        """Do `project`, but leave the LoRA expansion, if any, to the attention where it can add it:
        not under a norm of all heads together, and not of one module for all three."""
        norm = self._before[0]
        if norm is None or self._norms_of_all or self._about.architecture.is_fused:
            return self.project(x, lora), None
        return self._qkv.before_attention(x, norm, self._about.eps, lora)

    def after_attention(
        self, x: torch.Tensor, attended: torch.Tensor, lora: LoraBatch | None
    ) -> torch.Tensor:
        """Return the states behind the layer, of x (T, d) before it and what attention gave."""
        return self.mlp(self.add_attended(x, attended, lora), lora)

    def add_attended(
        self, x: torch.Tensor, attended: torch.Tensor, lora: LoraBatch | None
    ) -> torch.Tensor:
        return self._add(self._o, x, attended, self._after[0], lora)

    def mlp(self, x: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
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
            return linear.add_before_norm(residual, x, lora)
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


# T5Gemma's names, whose layers may attend twice.
_NAMES = {
    "input_layernorm": "pre_self_attn_layernorm",
    "post_attention_layernorm": "post_self_attn_layernorm",
}


def _norm_of(layer: Any, name: str) -> Any:
    return getattr(layer, name if hasattr(layer, name) else _NAMES[name])


def _query_key_norms(
    attention: Any, dtype: torch.dtype, about: Description
) -> tuple[HeadNorm | None, list[tuple[slice, torch.Tensor]]]:
    """Return the norm of single heads, if there is one, and which heads are normed together, with
    which weight (h, D)."""
    kind, offset = about.architecture.query_key_norms, about.architecture.norm_offset
    if kind == "none":
        return None, []
    h, both = about.num_heads, about.num_heads + about.num_kv_heads
    q, k = (norm_weight(norm, dtype, offset) for norm in (attention.q_norm, attention.k_norm))
    if kind == "head":
        return HeadNorm(torch.cat([q.expand(h, -1), k.expand(both - h, -1)]), about.eps), []
    shape = (-1, about.head_dim)
    return None, [(slice(h), q.view(shape)), (slice(h, both), k.view(shape))]
