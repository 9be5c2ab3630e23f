"""Describe Llama's relatives: what each has beyond Llama, and which fields say so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedConfig

from deployments.engine.kernels.ops import ACTIVATIONS

Norms = Literal["before", "after", "both"]

SHARED_ROPE = "shared"
_FULL, _SLIDING = "full_attention", "sliding_attention"
# Their frequencies are the same at every length, or as long as an answer is no longer than a length
# that the configuration names.
_FIXED_ROPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")

# Fields that every description reads, or that the weights tell (biases, a tied head).
_COMMON = frozenset(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim hidden_act rms_norm_eps rope_parameters "
    "max_position_embeddings tie_word_embeddings attention_bias mlp_bias lm_head_bias".split()
)
# These act in training, choose among equal ways to compute, or say where a model comes from.
_WITHOUT_EFFECT = frozenset(
    "attention_dropout hidden_dropout resid_pdrop embd_pdrop resid_dropout dropout dropout_rate "
    "classifier_dropout classifier_dropout_rate initializer_range initializer_factor use_cache "
    "pretraining_tp cache_implementation attn_implementation _attn_implementation torch_dtype "
    "auto_map is_llama_config transformers.js_config unsloth_fixed unsloth_version model_name "
    "original_max_position_embeddings rope_theta rope_scaling partial_rotary_factor default_theta "
    "n_positions output_past task_specific_params tokenizer_class "
    "scalable_attention _attn_implementation_autoset _flash_attn_2_enabled use_flash_attention_2 "
    "use_flash_attn use_bfloat16 torchscript gradient_checkpointing max_sequence_length seq_length "
    "model_max_length tokenizer_model_max_length tokenizer_padding_side neftune_noise_alpha "
    "finetuning_task license loss_type keys_to_ignore_at_inference _from_model_config attn_pdrop "
    "hidden_dropout_prob attention_probs_dropout_prob".split()
)
_NEUTRAL: tuple[Any, ...] = (None, False, "", [], {}, ())
_NEUTRAL_VALUES: Mapping[str, Any] = {"full_attn_mod": 1, "interpolate_factor": 1}  # Phi-4-mini's
_SAME_AS = {  # what some of Gemma's say twice, and transformers reads once
    "sliding_window_size": "sliding_window",
    "hidden_activation": "hidden_act",
}
_CHUNKS = "dual_chunk_attention_config"
_WINDOWS = "layer_types sliding_window use_sliding_window max_window_layers"
_GEMMA = f"{_WINDOWS} hidden_activation query_pre_attn_scalar final_logit_softcapping"
GEMMA_2 = frozenset(f"{_GEMMA} attn_logit_softcapping".split())
GEMMA_3 = frozenset(
    f"{_GEMMA} sliding_window_pattern _sliding_window_pattern rope_local_base_freq".split()
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """Say what the layers of one architecture have that Llama's do not.

    norms: of attention and of the MLP: before each, after each (before it is added), or both.
    norm_offset: what is added to a norm's stored weight.
    query_key_norms: over each head, or over all heads together.
    is_fused: q, k and v are stored as one weight (qkv_proj), gate and up too (gate_up_proj).
    embedding_is_scaled: by the square root of the hidden size.
    reads: further fields of the config that describe() understands.
    to_prompt: how an encoder-decoder's decoder attends to the prompt: in a part of the layer of its
        own, or with the answer's positions under one softmax.
    """

    model_class: str
    known_as: str
    norms: Norms = "before"
    norm_offset: float = 0.0
    query_key_norms: Literal["none", "head", "all"] = "none"
    is_fused: bool = False
    embedding_is_scaled: bool = False
    reads: frozenset[str] = frozenset()
    to_prompt: Literal["none", "apart", "merged"] = "none"

    @property
    def features(self) -> tuple[str, ...]:
        """Return what it may have beyond Llama, in words."""
        said = {
            "biases on q, k and v": self.model_class == "Qwen2ForCausalLM",
            "norms after attention and MLP": self.norms == "after",
            "norms before and after attention and MLP": self.norms == "both",
            "norm weights stored less one": self.norm_offset == 1.0,
            "query and key norms": self.query_key_norms != "none",
            "fused qkv_proj and gate_up_proj": self.is_fused,
            "sliding windows": "sliding_window" in self.reads,
            "layers without RoPE": "no_rope_layers" in self.reads,
            "partial RoPE": self.model_class == "Phi3ForCausalLM",
            "scaled embeddings": self.embedding_is_scaled,
            "multipliers": "residual_multiplier" in self.reads,
            "soft caps": "attn_logit_softcapping" in self.reads,
            "windows both ways in the encoder": self.to_prompt != "none",
            "one attention over prompt and answer": self.to_prompt == "merged",
        }
        return tuple(words for words, has in said.items() if has)


ARCHITECTURES: Mapping[str, Architecture] = {
    each.model_class: each
    for each in (
        Architecture("LlamaForCausalLM", "Llama, SmolLM2"),
        Architecture("Qwen2ForCausalLM", "Qwen2, Qwen2.5", reads=frozenset(_WINDOWS.split())),
        Architecture(
            "Qwen3ForCausalLM",
            "Qwen3",
            query_key_norms="head",
            reads=frozenset(_WINDOWS.split()),
        ),
        Architecture("MistralForCausalLM", "Mistral", reads=frozenset(["sliding_window"])),
        Architecture(
            "Ministral3ForCausalLM", "Ministral 3 (text)", reads=frozenset(["sliding_window"])
        ),
        Architecture("GemmaForCausalLM", "Gemma", norm_offset=1.0, embedding_is_scaled=True),
        Architecture(
            "Gemma2ForCausalLM",
            "Gemma 2",
            norms="both",
            norm_offset=1.0,
            embedding_is_scaled=True,
            reads=GEMMA_2,
        ),
        Architecture(
            "Gemma3ForCausalLM",
            "Gemma 3 (text)",
            norms="both",
            norm_offset=1.0,
            query_key_norms="head",
            embedding_is_scaled=True,
            reads=GEMMA_3,
        ),
        Architecture(
            "Phi3ForCausalLM",
            "Phi-3, Phi-4-mini",
            is_fused=True,
            reads=frozenset(["sliding_window"]),
        ),
        Architecture(
            "SmolLM3ForCausalLM",
            "SmolLM3",
            reads=frozenset(f"{_WINDOWS} no_rope_layers no_rope_layer_interval".split()),
        ),
        Architecture(
            "GraniteForCausalLM",
            "Granite 3",
            reads=frozenset(
                "embedding_multiplier attention_multiplier residual_multiplier "
                "logits_scaling".split()
            ),
        ),
        Architecture("Olmo2ForCausalLM", "OLMo 2", norms="after", query_key_norms="all"),
    )
}


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Describe the attention of one layer.

    window: of how many positions it sees, its own among them; None: of all.
    rope: the key of the model's table of rotations; None: queries and keys are not rotated.
    """

    window: int | None = None
    rope: str | None = SHARED_ROPE


@dataclass(frozen=True, slots=True)
class Description:
    """Describe one base model, read from its config.

    attention_cap, logits_cap: values v become cap * tanh(v / cap).
    residual_scale: of what attention and MLP add.
    """

    architecture: Architecture
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    activation: str
    layers: tuple[LayerKind, ...]
    attention_scale: float
    attention_cap: float | None
    logits_cap: float | None
    embedding_scale: float
    residual_scale: float
    logits_divisor: float

    @property
    def beyond_llama(self) -> tuple[str, ...]:
        """Return what its layers have and a Llama's have not, biases apart, in words."""
        windows = {layer.window for layer in self.layers if layer.window is not None}
        ropes = {layer.rope for layer in self.layers}
        factors = (self.embedding_scale, self.residual_scale, self.logits_divisor)
        said = {
            "other norms than before attention and MLP": self.architecture.norms != "before",
            "query and key norms": self.architecture.query_key_norms != "none",
            "fused qkv_proj and gate_up_proj": self.architecture.is_fused,
            f"a sliding window (sliding_window {', '.join(map(str, sorted(windows)))})": bool(
                windows
            ),
            "layers without RoPE": None in ropes,
            "a RoPE for each kind of layer": bool(ropes - {None, SHARED_ROPE}),
            "a scale of attention": self.attention_scale != self.head_dim**-0.5,
            "soft caps": (self.attention_cap, self.logits_cap) != (None, None),
            "multipliers": set(factors) != {1.0},
        }
        return tuple(words for words, has in said.items() if has)


def describe(model: Any, num_positions: int | None = None) -> Description:
    """Return the description of a model that `unsupported_causal` found nothing against.

    Args:
        num_positions: of the longest answer, prompt included; a window that none is longer than is
            none. None: it is not known.
    """
    return describe_stack(model.config, ARCHITECTURES[type(model).__name__], num_positions)


def describe_stack(
    config: Any, architecture: Architecture, num_positions: int | None = None
) -> Description:
    """Return the description of layers that `unsupported_stack` found nothing against; `describe`
    says of how many positions."""

    def read(name: str, default: Any = None) -> Any:
        found = getattr(config, name, None) if name in architecture.reads else None
        return default if found is None else found

    heads: int = config.num_attention_heads
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    scalar = read("query_pre_attn_scalar", head_dim)
    return Description(
        architecture=architecture,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        eps=config.rms_norm_eps,
        activation=read("hidden_activation", getattr(config, "hidden_act", None)),
        layers=_layers(config, architecture, num_positions),
        attention_scale=read("attention_multiplier", scalar**-0.5),
        attention_cap=read("attn_logit_softcapping"),
        logits_cap=read("final_logit_softcapping"),
        embedding_scale=(
            config.hidden_size**0.5
            if architecture.embedding_is_scaled
            else read("embedding_multiplier", 1.0)
        ),
        residual_scale=read("residual_multiplier", 1.0),
        logits_divisor=read("logits_scaling", 1.0),
    )


def unsupported_causal(model: Any, num_positions: int) -> str | None:
    """Return why this model cannot run in the fast decoder. Returns None if it can.

    Args:
        num_positions: of the longest answer, prompt included.
    """
    architecture = ARCHITECTURES.get(type(model).__name__)
    if architecture is None:
        return f"{type(model).__name__} is none of {', '.join(ARCHITECTURES)}"
    if getattr(model.model.layers[0].mlp.down_proj, "weight", None) is None:
        return "its layers are not plain linear layers"
    return unsupported_stack(model.config, architecture, num_positions)


def unsupported_stack(config: Any, architecture: Architecture, num_positions: int) -> str | None:
    """Return why layers with this config cannot run here. Returns None if they can."""
    activation = describe_stack(config, architecture).activation
    if activation not in ACTIVATIONS:
        return f"its activation is {activation!r}; only {', '.join(ACTIVATIONS)} are fast"
    for kind in getattr(config, "layer_types", None) or ():
        if kind not in (_FULL, _SLIDING):
            return f"layer_types has {kind!r}; only {_FULL} and {_SLIDING} are fast"
    known = _COMMON | architecture.reads | {_CHUNKS}
    return (
        unknown_field(config, known)
        or _no_window(config)
        or _moving_rope(config, num_positions)
        or _cut_in_chunks(config, num_positions)
    )


def _cut_in_chunks(config: Any, num_positions: int) -> str | None:
    """Return why a text is longer than one chunk, within which attention is as ever. Returns None
    if none is (Qwen2.5 with a million positions; transformers knows no chunks)."""
    chunks = getattr(config, _CHUNKS, None)
    if not chunks:
        return None
    try:
        length = int(chunks["chunk_size"]) - int(chunks.get("local_size", 0))
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{_CHUNKS} is {chunks!r} in its config, which names no chunk_size"
    if num_positions <= length:
        return None
    return (
        f"{_CHUNKS} cuts a text into chunks of {length} positions, which neither decoder does, and "
        f"an answer may take {num_positions} with its prompt: lower engine.max_input_tokens"
    )


def _no_window(config: Any) -> str | None:
    window = getattr(config, "sliding_window", None)
    slides = _SLIDING in (getattr(config, "layer_types", None) or ())
    if (window is None and slides) or (window is not None and window < 1):
        return f"sliding_window is {window} in its config, of which transformers makes no window"
    return None


def _layers(
    config: Any, architecture: Architecture, num_positions: int | None
) -> tuple[LayerKind, ...]:
    """Return the kind of each layer; without layer_types a window is every layer's."""
    number: int = config.num_hidden_layers
    window = config.sliding_window if "sliding_window" in architecture.reads else None
    is_reached = num_positions is None or window is None or window < num_positions
    kinds = [_SLIDING if window else _FULL] * number
    if "layer_types" in architecture.reads:
        kinds = config.layer_types
    rotates = [True] * number
    if "no_rope_layers" in architecture.reads:
        rotates = config.no_rope_layers
    shared = SHARED_ROPE in ropes_of(config)
    return tuple(
        LayerKind(
            window if kind == _SLIDING and is_reached else None,
            (SHARED_ROPE if shared else kind) if is_rotated else None,
        )
        for kind, is_rotated in zip(kinds, rotates, strict=False)
    )


def ropes_of(config: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the RoPE parameters by kind of layer; under SHARED_ROPE if all layers share them."""
    parameters: Mapping[str, Any] = config.rope_parameters
    nested = {kind: own for kind, own in parameters.items() if isinstance(own, Mapping)}
    return nested or {SHARED_ROPE: parameters}


def unknown_field(config: Any, known: frozenset[str]) -> str | None:
    """Return the field of a config that is not known and asks for something. None if none does."""
    known = known | _WITHOUT_EFFECT | _fields_of_any_model()
    for name, value in config.to_dict().items():
        if name in known or name.endswith(("_token_id", "_token_ids")):
            continue
        is_number = isinstance(value, int | float) and value == 0
        is_number |= name == "layer_types" and set(value or ()) <= {_FULL}
        is_said = name in _SAME_AS and value == getattr(config, _SAME_AS[name], None)
        if value in _NEUTRAL or is_number or is_said or _NEUTRAL_VALUES.get(name) == value:
            continue
        return f"{name} is {value!r} in its config, a field that the fast decoder does not know"
    return None


def _fields_of_any_model() -> frozenset[str]:
    return frozenset(PreTrainedConfig().to_dict()) | {"architectures", "model_type", "dtype"}


def rope_limit(config: Any, parameters: Mapping[str, Any]) -> int | None:
    """Return the positions up to which the frequencies are the same. Returns None if they always
    are."""
    limits = {
        "dynamic": config.max_position_embeddings,
        "longrope": parameters.get("original_max_position_embeddings"),
    }
    return limits.get(parameters.get("rope_type", "default"))


def _moving_rope(config: Any, num_positions: int) -> str | None:
    """Return why rotation, or the scale of queries, depends on a text's length. Returns None if it
    does not."""
    for parameters in ropes_of(config).values():
        scaled = parameters.get("original_max_position_embeddings")
        if parameters.get("llama_4_scaling_beta") and scaled and num_positions > scaled:
            return (
                f"llama_4_scaling_beta scales queries from position {scaled} on, and an answer may "
                f"take {num_positions} with its prompt: lower engine.max_input_tokens for the fast "
                "decoder"
            )
        kind = parameters.get("rope_type", "default")
        if kind not in _FIXED_ROPES:
            return f"rope_type is {kind!r}; only {', '.join(_FIXED_ROPES)} are fast"
        limit = rope_limit(config, parameters)
        if limit is not None and num_positions > limit:
            return (
                f"rope_type is {kind!r}, whose frequencies change beyond {limit} positions, and "
                f"an answer may take {num_positions} with its prompt: lower "
                "engine.max_input_tokens for the fast decoder"
            )
    return None
