"""Shapes of well-known base models, for models of that size with random weights.

Each is the model's config.json, with a context of 16,384 and special tokens of our own.
"""

from collections.abc import Mapping
from typing import Any

import transformers

_END = {"eos_token_id": 2, "pad_token_id": 2, "bos_token_id": 1}
_T5_XL = {
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
    "scale_decoder_outputs": False,
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def _causal(
    width: int, mlp: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": False,
        **_END,
        **more,
    }


def _rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


# Name -> (class of its config, fields).
SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama-1b-shape": (  # Llama 3.2 1B, with plain RoPE
        "LlamaConfig",
        _causal(2048, 8192, 16, 32, 8, 128256, head_dim=64, tie_word_embeddings=True),
    ),
    "llama-8b-shape": (  # Llama 3.1 8B, with plain RoPE
        "LlamaConfig",
        _causal(4096, 14336, 32, 32, 8, 128256, **_rope(500_000.0)),
    ),
    "qwen2.5-7b-shape": (
        "Qwen2Config",
        _causal(3584, 18944, 28, 28, 4, 152064, **_rope(1_000_000.0)),
    ),
    "qwen3-8b-shape": (
        "Qwen3Config",
        _causal(4096, 12288, 36, 32, 8, 151936, head_dim=128, **_rope(1_000_000.0)),
    ),
    "mistral-7b-shape": (  # v0.1, whose window is the only one
        "MistralConfig",
        _causal(4096, 14336, 32, 32, 8, 32000, sliding_window=4096, **_rope(10_000.0)),
    ),
    "gemma2-9b-shape": (
        "Gemma2Config",
        _causal(
            3584,
            14336,
            42,
            16,
            8,
            256000,
            head_dim=256,
            query_pre_attn_scalar=256,
            tie_word_embeddings=True,
        ),
    ),
    "gemma3-4b-shape": (
        "Gemma3TextConfig",
        _causal(
            2560,
            10240,
            34,
            8,
            4,
            262208,
            head_dim=256,
            query_pre_attn_scalar=256,
            sliding_window=1024,
            tie_word_embeddings=True,
        ),
    ),
    "phi4-mini-shape": (  # with the RoPE of its first 4,096 positions, unscaled
        "Phi3Config",
        _causal(
            3072,
            8192,
            32,
            24,
            8,
            200064,
            tie_word_embeddings=True,
            **_rope(10_000.0, partial_rotary_factor=0.75),
        ),
    ),
    "smollm3-3b-shape": (
        "SmolLM3Config",
        _causal(2048, 11008, 36, 16, 4, 128256, tie_word_embeddings=True, **_rope(5_000_000.0)),
    ),
    "granite3-8b-shape": (
        "GraniteConfig",
        _causal(
            4096,
            12800,
            40,
            32,
            8,
            49155,
            embedding_multiplier=12.0,
            attention_multiplier=0.0078125,
            residual_multiplier=0.22,
            logits_scaling=16.0,
            tie_word_embeddings=True,
            **_rope(10_000_000.0),
        ),
    ),
    "olmo2-7b-shape": ("Olmo2Config", _causal(4096, 11008, 32, 32, 32, 100352, **_rope(500_000.0))),
    "flan-t5-xl-shape": ("T5Config", {**_T5_XL, "vocab_size": 32128}),
    "mt5-xl-shape": ("MT5Config", {**_T5_XL, "vocab_size": 250112}),
    "umt5-xl-shape": ("UMT5Config", {**_T5_XL, "vocab_size": 256384}),
}


def config_of(name: str, layers: int | None = None) -> Any:
    """Return the transformers config of a shape.

    Args:
        layers: of the model, in place of its own number; of an encoder-decoder, in each half.
    """
    kind, fields = SHAPES[name]
    fewer = {}
    if layers is not None:
        is_causal = "num_hidden_layers" in fields
        names = ["num_hidden_layers"] if is_causal else ["num_layers", "num_decoder_layers"]
        fewer = dict.fromkeys(names, layers)
    return getattr(transformers, kind)(**{**fields, **fewer})


def model_class(name: str) -> str:
    """Return the name of transformers' class of a shape's models."""
    kind, fields = SHAPES[name]
    task = "CausalLM" if "num_hidden_layers" in fields else "ConditionalGeneration"
    return f"{kind.removesuffix('Config').removesuffix('Text')}For{task}"


def linear_layers(name: str) -> list[str]:
    """Return the names of a shape's linear layers inside its blocks, as PEFT targets them."""
    kind, _ = SHAPES[name]
    if kind.endswith("T5Config"):
        return "q k v o wi_0 wi_1 wo".split()
    if kind == "Phi3Config":
        return "qkv_proj o_proj gate_up_proj down_proj".split()
    return "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
