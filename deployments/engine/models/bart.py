"""Run BART, mBART, M2M100 and NLLB, as their descriptions say: encoder-decoders with LayerNorm.

The encoder runs once for a prompt. Its keys and values for every decoder layer are cached at the
end of the row, the decoder's own at the front.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from deployments.engine.attention.kv_cache import DecodeBatch, KvCache
from deployments.engine.attention.prefill import PrefillBatch
from deployments.engine.kernels.ops import ACTIVATIONS, activate
from deployments.engine.lora.layers import LoraBatch
from deployments.engine.models.architectures import unknown_field
from deployments.engine.models.base import KvShape, TorchBatches
from deployments.engine.models.linear import FusedLinear, LMHead
from deployments.engine.models.weights import tied_or_own

# What the classes read, then what older configurations say beside it: the class decides that, and
# how many beams and which lengths transformers would search by default is not the model's.
_FIELDS = frozenset(
    "vocab_size max_position_embeddings d_model encoder_layers decoder_layers encoder_ffn_dim "
    "decoder_ffn_dim encoder_attention_heads decoder_attention_heads activation_function "
    "scale_embedding tie_word_embeddings num_hidden_layers "
    "encoder_layerdrop decoder_layerdrop activation_dropout init_std classif_dropout num_labels "
    "_num_labels normalize_before normalize_embedding add_final_layer_norm add_bias_logits "
    "static_position_embeddings extra_pos_embeddings force_bos_token_to_be_generated prefix "
    "save_step max_length min_length num_beams length_penalty early_stopping "
    "no_repeat_ngram_size".split()
)


@dataclass(frozen=True, slots=True)
class BartArchitecture:
    """Say what one architecture has.

    norms: of attention and MLP: after what they give is added, or before each, and then one more
        behind the last layer.
    positions: a table that was trained, or sines and cosines.
    embeddings_are_normed: after the positions are added.
    """

    known_as: str
    norms: Literal["before", "after"]
    positions: Literal["learned", "sinusoidal"]
    embeddings_are_normed: bool

    @property
    def features(self) -> tuple[str, ...]:
        """Return what it has beyond T5, in words."""
        normed = ("normed embeddings",) if self.embeddings_are_normed else ()
        norms = f"LayerNorm with bias {self.norms} attention and MLP"
        return (f"{self.positions} positions", *normed, norms, "biases")


BART_MODELS: Mapping[str, BartArchitecture] = {
    "BartForConditionalGeneration": BartArchitecture("BART", "after", "learned", True),
    "MBartForConditionalGeneration": BartArchitecture("mBART", "before", "learned", True),
    "M2M100ForConditionalGeneration": BartArchitecture(
        "M2M100, NLLB", "before", "sinusoidal", False
    ),
}


def unsupported_by_bart(model: Any, num_positions: int) -> str | None:
    """Return why this model, one of BART_MODELS, cannot run here, at whatever length. Returns
    None if it can."""
    activation = model.config.activation_function
    if activation not in ACTIVATIONS:
        return f"its activation is {activation!r}; fast: {', '.join(ACTIVATIONS)}"
    return unknown_field(model.config, _FIELDS)


class BartModel(TorchBatches):
    """Implement Model (base.py). Takes the weights out of `model`.

    Args:
        num_positions: positions of one answer, prompt included.
    """

    can_split_prompts = False  # the encoder sees the whole prompt in every layer
    keeps_prompts_at_end = True

    def __init__(self, model: Any, dtype: torch.dtype, num_positions: int) -> None:
        config, inner = model.config, model.model
        about = BART_MODELS[type(model).__name__]
        weight: torch.Tensor = inner.shared.weight.data.to(dtype)
        self._head = LMHead(model.lm_head, inner.shared, weight)
        bias = getattr(model, "final_logits_bias", None)
        self._logits_bias = bias.data.to(dtype) if bias is not None and bool(bias.any()) else None
        tables = [
            _positions(stack.embed_positions, about, num_positions, weight)
            for stack in (inner.encoder, inner.decoder)
        ]
        act = config.activation_function

        def own_of(stack: Any) -> torch.Tensor:
            """Return a half's embeddings: its own, unless the configuration ties them."""
            return tied_or_own(stack.embed_tokens.weight.data, inner.shared.weight.data, weight)

        self._encoder, self._decoder = (
            _Stack(kind, stack, own_of(stack), table, about, dtype, act)
            for kind, stack, table in zip(
                ("encoder", "decoder"), (inner.encoder, inner.decoder), tables, strict=True
            )
        )
        self.lora_layers = [*self._encoder.lora_layers, *self._decoder.lora_layers]
        self.lora_layers.append(self._head.lora_layer)
        heads: int = config.decoder_attention_heads
        self.kv_shape = KvShape(config.decoder_layers, heads, config.d_model // heads, dtype)
        self._encoder_heads: int = config.encoder_attention_heads
        self.vocab_size = self._head.out_features
        self.device = weight.device

    def prefill(self, cache: KvCache, batch: PrefillBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Run the encoder over whole prompts and cache the keys and values for the decoder."""
        x = self._encoder.embed_prompts(batch.tokens, batch.positions)
        heads = (self._encoder_heads, x.shape[1] // self._encoder_heads)
        for layer in self._encoder.layers:
            attention = layer.attention
            qkv = attention.qkv(attention.before(x), lora).view(len(x), 3, *heads)
            attended = batch.attention(
                qkv[:, 0], qkv[:, 1:], scale=heads[1] ** -0.5, is_causal=False
            )
            x = layer.mlp(attention.add(x, attended, lora), lora)
        encoded = self._encoder.ended(x)
        own = (self.kv_shape.num_heads, self.kv_shape.head_dim)
        for i, layer in enumerate(self._decoder.layers):
            assert layer.cross is not None, "a layer of the decoder"
            kv = layer.cross.kv(encoded, lora)
            cache.write(i, batch.where, kv.view(len(x), 2, *own))
        return encoded

    def decode(self, cache: KvCache, batch: DecodeBatch, lora: LoraBatch | None) -> torch.Tensor:
        """Take the rows one position further; returns their states (B, d)."""
        h, dim = self.kv_shape.num_heads, self.kv_shape.head_dim
        x = self._decoder.embed(batch.tokens, batch.attention.positions)
        for i, layer in enumerate(self._decoder.layers):
            attention, cross = layer.attention, layer.cross
            assert cross is not None, "a layer of the decoder"
            qkv = attention.qkv(attention.before(x), lora)
            attended = batch.attention.self_attention(
                qkv.view(len(x), 3 * h, dim), None, i, scale=dim**-0.5
            )
            x = attention.add(x, attended, lora)
            q = cross.q(cross.before(x), lora)
            attended = batch.attention.cross_attention(
                q.view(len(x), h, dim), None, i, scale=dim**-0.5
            )
            x = layer.mlp(cross.add(x, attended, lora), lora)
        return self._decoder.ended(x)

    def logits(self, hidden: torch.Tensor, lora: LoraBatch | None = None) -> torch.Tensor:
        """Return the logits (n, V) of states (n, d)."""
        logits = self._head(hidden, lora)
        return logits if self._logits_bias is None else logits.add_(self._logits_bias)


@dataclass(frozen=True, slots=True)
class _Positions:
    """Hold what is added to embeddings by position: table (n, d), read from `first` on.

    pad_id: a padding token has no position and is not counted; None: it is like any other.
    """

    table: torch.Tensor
    first: int
    pad_id: int | None

    def of(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the rows (T, d) of the table for tokens at these positions, (T,) both."""
        at = positions + self.first
        if self.pad_id is not None:
            at = at.masked_fill(tokens == self.pad_id, self.pad_id)
        return self.table[at]

    def uncounted(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the positions (T,) in prompts that lie side by side, padding not counted."""
        if self.pad_id is None:
            return positions
        counted = (tokens != self.pad_id).long()
        up_to = counted.cumsum(0) - counted
        begins = torch.arange(len(tokens), device=tokens.device) - positions
        return up_to - up_to[begins]


def _positions(
    embedding: Any, about: BartArchitecture, num_positions: int, like: torch.Tensor
) -> _Positions:
    if about.positions == "learned":
        return _Positions(embedding.weight.data.to(like.dtype), embedding.offset, None)
    pad = embedding.padding_idx
    table = embedding.get_embedding(num_positions + pad + 1, embedding.embedding_dim, pad)
    return _Positions(table.to(like), pad + 1, pad)


class _Norm:
    """Take the LayerNorm of x (T, d)."""

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        self._weight, self._bias = norm.weight.data.to(dtype), norm.bias.data.to(dtype)
        self._eps: float = norm.eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


class _Part:
    """Hold the norm of one part of a layer, which is taken before or after it."""

    def __init__(self, norm: Any, dtype: torch.dtype, about: BartArchitecture) -> None:
        self._norm, self._is_before = _Norm(norm, dtype), about.norms == "before"

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return self._norm(x) if self._is_before else x

    def _ended(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._is_before else self._norm(x)


class _Attention(_Part):
    """Hold an attention's products: qkv of its own states, or q of them and kv of the encoder's."""

    def __init__(
        self, path: str, layer: Any, name: str, dtype: torch.dtype, about: BartArchitecture
    ) -> None:
        super().__init__(getattr(layer, f"{name}_layer_norm"), dtype, about)
        module, inner = getattr(layer, name), f"{path}.{name}"

        def fused(letters: str) -> FusedLinear:
            names = [f"{letter}_proj" for letter in letters]
            own = {f"{inner}.{each}": getattr(module, each) for each in names}
            return FusedLinear(f"{inner}.{letters}", own, dtype)

        if name == "encoder_attn":
            self.q, self.kv = fused("q"), fused("kv")
            products = [self.q, self.kv]
        else:
            self.qkv = fused("qkv")
            products = [self.qkv]
        self._o = FusedLinear(f"{inner}.o", {f"{inner}.out_proj": module.out_proj}, dtype)
        self.lora_layers = [product.lora_layer for product in (*products, self._o)]

    def add(self, x: torch.Tensor, attended: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        """Return the states behind it, of x (T, d) before it and what attention gave."""
        return self._ended(self._o.add_to(x, attended, lora))


class _Mlp(_Part):
    def __init__(
        self, path: str, layer: Any, dtype: torch.dtype, about: BartArchitecture, act: str
    ) -> None:
        super().__init__(layer.final_layer_norm, dtype, about)
        self._fc1, self._fc2 = (
            FusedLinear(f"{path}.{name}", {f"{path}.{name}": getattr(layer, name)}, dtype)
            for name in ("fc1", "fc2")
        )
        self._act = functools.partial(activate, activation=act)
        self.lora_layers = [self._fc1.lora_layer, self._fc2.lora_layer]

    def __call__(self, x: torch.Tensor, lora: LoraBatch | None) -> torch.Tensor:
        inner = self._act(self._fc1(self.before(x), lora))
        return self._ended(self._fc2.add_to(x, inner, lora))


class _Layer:
    """Hold one layer; `cross` is None in the encoder."""

    def __init__(
        self, path: str, layer: Any, dtype: torch.dtype, about: BartArchitecture, act: str
    ) -> None:
        self.attention = _Attention(path, layer, "self_attn", dtype, about)
        self.cross: _Attention | None = None
        if hasattr(layer, "encoder_attn"):
            self.cross = _Attention(path, layer, "encoder_attn", dtype, about)
        self.mlp = _Mlp(path, layer, dtype, about, act)
        crossing = [] if self.cross is None else self.cross.lora_layers
        self.lora_layers = [*self.attention.lora_layers, *crossing, *self.mlp.lora_layers]


class _Stack:
    """Hold the encoder or the decoder: embeddings, layers, and the norm behind them."""

    def __init__(
        self,
        name: str,
        stack: Any,
        weight: torch.Tensor,
        positions: _Positions,
        about: BartArchitecture,
        dtype: torch.dtype,
        act: str,
    ) -> None:
        self._weight, self._positions = weight, positions
        self._scale: float = stack.embed_tokens.embed_scale
        self._norm = None
        if about.embeddings_are_normed:
            self._norm = _Norm(stack.layernorm_embedding, dtype)
        self._last = _Norm(stack.layer_norm, dtype) if about.norms == "before" else None
        self.layers = [
            _Layer(f"model.{name}.layers.{i}", layer, dtype, about, act)
            for i, layer in enumerate(stack.layers)
        ]
        self.lora_layers = [own for layer in self.layers for own in layer.lora_layers]

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the states (T, d) of tokens at these positions, (T,) both."""
        x = self._weight[tokens]
        if self._scale != 1.0:
            x = x.mul_(self._scale)
        x = x.add_(self._positions.of(tokens, positions))
        return x if self._norm is None else self._norm(x)

    def embed_prompts(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Do `embed` for whole prompts, one behind the other."""
        return self.embed(tokens, self._positions.uncounted(tokens, positions))

    def ended(self, x: torch.Tensor) -> torch.Tensor:
        """Return the states (T, d) behind the stack, of those behind its last layer."""
        return x if self._last is None else self._last(x)
