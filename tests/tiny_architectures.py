"""A tiny random model of each architecture, with what real checkpoints have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    T5Gemma2Config,
    T5Gemma2ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from deployments.engine.model_loader import Family
from tests.tiny_models import llama_fields
from tests.tiny_tokenizers import byte_pair_tokenizer, unigram_tokenizer

WINDOW = 12  # positions: shorter than most prompts of the tests
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.8, 2.0],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
    "original_max_position_embeddings": 128,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_GEMMA = {
    "head_dim": 16,
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 24,
    "layer_types": [_SLIDING, _FULL],
}
_UNTIED = {"tie_word_embeddings": False}  # as real ones of these are
Recipe = tuple[type, type, dict[str, Any]]
RECIPES: Mapping[str, Recipe] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": YARN}),
    "llama_dynamic": (
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}},
    ),
    "qwen2_window": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 24}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None, **_UNTIED}),
    "mistral_window": (MistralConfig, MistralForCausalLM, {"sliding_window": WINDOW}),
    "ministral3": (
        Ministral3Config,
        Ministral3ForCausalLM,
        {
            "rope_parameters": YARN
            | {
                "original_max_position_embeddings": 128,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            }
        },
    ),
    "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {**_GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0},
    ),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            **_GEMMA,
            "rope_parameters": {
                _FULL: {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 8.0},
                _SLIDING: {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
    ),
    "phi3": (Phi3Config, Phi3ForCausalLM, {"sliding_window": WINDOW, **_UNTIED}),
    "phi4_mini": (
        Phi3Config,
        Phi3ForCausalLM,
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 128},
    ),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, {"no_rope_layers": [1, 0]}),
    "granite": (
        GraniteConfig,
        GraniteForCausalLM,
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.7,
            "logits_scaling": 2.0,
        },
    ),
    "olmo2": (Olmo2Config, Olmo2ForCausalLM, _UNTIED),
    "t5": (T5Config, T5ForConditionalGeneration, {"feed_forward_proj": "gated-gelu"}),
    "mt5": (MT5Config, MT5ForConditionalGeneration, {}),
    "umt5": (UMT5Config, UMT5ForConditionalGeneration, {}),
    "bart": (BartConfig, BartForConditionalGeneration, {"encoder_attention_heads": 2}),
    "bart_cnn": (
        BartConfig,
        BartForConditionalGeneration,
        {"activation_function": "relu", "scale_embedding": True},
    ),
    "mbart": (
        MBartConfig,
        MBartForConditionalGeneration,
        {"decoder_start_token_id": 17, "scale_embedding": True, "forced_eos_token_id": None},
    ),
    "nllb": (M2M100Config, M2M100ForConditionalGeneration, {}),
    "t5gemma": (T5GemmaConfig, T5GemmaForConditionalGeneration, {}),
    "t5gemma2": (T5Gemma2Config, T5Gemma2ForConditionalGeneration, {}),
}
_BARTS = ("bart", "bart_cnn", "mbart", "nllb")
FORCED_FIRST = {"bart_cnn": 3, "nllb": 23}


def make_tiny(name: str, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """Save the model of a recipe with a tokenizer; `options` are further fields of its config."""
    torch.manual_seed(seed)
    config_class, model_class, fields = RECIPES[name]
    is_seq2seq = family_of(name) == "seq2seq"
    tokenizer = unigram_tokenizer() if is_seq2seq else byte_pair_tokenizer()
    fields_of = (_bart_fields if name in _BARTS else _t5_fields) if is_seq2seq else _fields
    fields_of = _T5GEMMAS.get(name, fields_of)
    own = fields_of(tokenizer)
    config = config_class(**own | fields | options)
    model = model_class(config)
    (_randomise_bart if name in _BARTS else randomise)(model)
    model.generation_config.forced_bos_token_id = FORCED_FIRST.get(name)
    if "gemma" in name:  # multiplied by 8: every token would be followed by itself
        embeddings = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        for weight in {m.weight for m in embeddings if m.num_embeddings == len(tokenizer)}:
            weight.data.mul_(0.1)
            if name in _T5GEMMAS:  # what an answer begins with, and would go on with
                weight.data[own["bos_token_id"]].mul_(0.1)
        # Attention to a prompt says much the same at each position: let the tokens be heard too.
        for path, parameter in model.named_parameters():
            if "decoder" in path and path.endswith("attn_layernorm.weight") and "post" in path:
                parameter.data.mul_(0.3).sub_(0.7)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def randomise(model: torch.nn.Module) -> None:
    """Make weights that all count: norms and biases too, which are ones and zeros at first."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
            elif "relative_attention_bias" in name:
                parameter.normal_(std=1.0)
            elif "Attention" in name:  # T5's own initialisation gives it next to no voice
                parameter.normal_(std=0.3)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif name.endswith("eoi_embedding"):
                parameter.normal_(std=0.3)


def _randomise_bart(model: Any) -> None:
    """Do `randomise` where LayerNorm would let a bias of that size, or one token, always win."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.normal_(std=0.5 if ".layers." in name else 0.3)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_(std=0.3)


def _fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return llama_fields(tokenizer) | {"intermediate_size": 96}


def _t5_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )


def _bart_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=80,
        init_std=0.3,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=1,
        forced_eos_token_id=1,
    )


def _gemma_half(tokenizer: PreTrainedTokenizerFast, **options: Any) -> dict[str, Any]:
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 17}
    return llama_fields(tokenizer) | _GEMMA | special | options


def _t5gemma_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """An encoder of another size and depth; answers are longer than the decoder's window."""
    capped = {"attn_logit_softcapping": 8.0, "final_logit_softcapping": 4.0}
    encoder = {"hidden_size": 128, "num_hidden_layers": 3, "num_key_value_heads": 4, "head_dim": 32}
    layers = {"layer_types": [_SLIDING, _FULL, _SLIDING], "sliding_window": WINDOW - 5}
    return dict(
        encoder=_gemma_half(tokenizer, **capped, **encoder, **layers),
        decoder=_gemma_half(tokenizer, **capped, num_key_value_heads=1, sliding_window=5),
        vocab_size=len(tokenizer),
        bos_token_id=17,
    )


def _t5gemma2_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The end of an image is an ordinary token here, so that prompts and answers have it."""
    ropes = {
        _FULL: {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 8.0},
        _SLIDING: {"rope_type": "default", "rope_theta": 1000.0},
    }
    images = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    encoder = dict(
        text_config=_gemma_half(tokenizer, rope_parameters=ropes, sliding_window=WINDOW + 1),
        vision_config=images,
        mm_tokens_per_image=1,
        boi_token_index=8,
        eoi_token_index=9,
    )
    return dict(
        encoder=encoder,
        decoder=_gemma_half(
            tokenizer, rope_parameters=ropes, final_logit_softcapping=4.0, sliding_window=5
        ),
        image_token_index=10,
        bos_token_id=17,
    )


_T5GEMMAS = {"t5gemma": _t5gemma_fields, "t5gemma2": _t5gemma2_fields}


def family_of(name: str) -> Family:
    is_seq2seq = name.endswith("t5") or name in _BARTS or name.startswith("t5gemma")
    return "seq2seq" if is_seq2seq else "causal"
