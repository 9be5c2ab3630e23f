"""What config.json of published checkpoints says: every field of it, sizes made small.

Facts, as the repositories have them: old names (`torch_dtype`, `rope_scaling`), fields that no
class reads, and fields that trainers and converters leave behind.
"""

from collections.abc import Mapping
from typing import Any

Fields = dict[str, Any]
_FULL, _SLIDING = "full_attention", "sliding_attention"
_PATTERN = [*[_SLIDING] * 5, _FULL]


def _decoder(name: str, model_type: str, **fields: Any) -> Fields:
    return {
        "architectures": [f"{name}ForCausalLM"], "model_type": model_type, "vocab_size": 64,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu",
        "initializer_range": 0.02, "rms_norm_eps": 1e-06, "tie_word_embeddings": False,
        "attention_dropout": 0.0, "torch_dtype": "bfloat16", "transformers_version": "4.43.0",
        "use_cache": True, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
    } | fields  # fmt: skip


def _llama(**fields: Any) -> Fields:
    own = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None}
    return _decoder("Llama", "llama", **own | fields)


def _qwen2(**fields: Any) -> Fields:
    windows = {"max_window_layers": 2, "sliding_window": 131072, "use_sliding_window": False}
    return _decoder("Qwen2", "qwen2", **windows | fields)


def _qwen3(**fields: Any) -> Fields:
    own = {"attention_bias": False, "head_dim": 16, "rope_scaling": None, "sliding_window": None}
    windows = {"max_window_layers": 2, "use_sliding_window": False}
    return _decoder("Qwen3", "qwen3", **own | windows | fields)


def _gemma(version: str, model_type: str, **fields: Any) -> Fields:
    own = {"attention_bias": False, "head_dim": 16, "pad_token_id": 0, "eos_token_id": [1, 3]}
    own["hidden_activation"] = "gelu_pytorch_tanh"
    found = _decoder(f"Gemma{version}", model_type, **own | fields)
    if "hidden_act" not in fields:
        found.pop("hidden_act")
    return found


def _gemma2(**fields: Any) -> Fields:
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    more = {"cache_implementation": "hybrid", "sliding_window": 4096, "query_pre_attn_scalar": 16}
    return _gemma("2", "gemma2", **caps | more | {"hidden_act": "gelu_pytorch_tanh"} | fields)


def _gemma3(**fields: Any) -> Fields:
    caps = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    rope = {"rope_local_base_freq": 10000, "rope_scaling": None, "sliding_window": 512}
    rope["query_pre_attn_scalar"] = 16
    return _gemma("3", "gemma3_text", **caps | rope | {"num_hidden_layers": 6} | fields)


def _phi3(**fields: Any) -> Fields:
    code = {"AutoConfig": "configuration_phi3.Phi3Config"}
    own = {"attention_bias": False, "auto_map": code, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    own["pad_token_id"] = 0
    rope = {"original_max_position_embeddings": 4096, "rope_scaling": None}
    return _decoder("Phi3", "phi3", **own | rope | {"sliding_window": 262144} | fields)


def _t5(model_type: str = "t5", **fields: Any) -> Fields:
    return {
        "architectures": [f"{model_type.upper()}ForConditionalGeneration"], "d_ff": 96, "d_kv": 16,
        "d_model": 64, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06, "model_type": model_type, "num_decoder_layers": 2,
        "num_heads": 4, "num_layers": 2, "pad_token_id": 0, "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False, "use_cache": True, "vocab_size": 64,
    } | fields  # fmt: skip


def _bart(name: str, model_type: str, **fields: Any) -> Fields:
    return {
        "activation_dropout": 0.0, "activation_function": "relu", "attention_dropout": 0.1,
        "architectures": [f"{name}ForConditionalGeneration"], "bos_token_id": 0, "d_model": 64,
        "decoder_attention_heads": 4, "decoder_ffn_dim": 96, "decoder_layerdrop": 0.05,
        "decoder_layers": 2, "decoder_start_token_id": 2, "dropout": 0.1, "early_stopping": True,
        "encoder_attention_heads": 4, "encoder_ffn_dim": 96, "encoder_layerdrop": 0.05,
        "encoder_layers": 2, "eos_token_id": 2, "gradient_checkpointing": False, "init_std": 0.02,
        "is_encoder_decoder": True, "max_length": 200, "max_position_embeddings": 1024,
        "model_type": model_type, "num_beams": 5, "num_hidden_layers": 2, "pad_token_id": 1,
        "scale_embedding": True, "vocab_size": 64,
    } | fields  # fmt: skip


_LLAMA_3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_type": "llama3",
}  # fmt: skip
_JS = {"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}}
_LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
_MILLION = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
_MINISTRAL_3 = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
    "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn",
}  # fmt: skip
_GRANITE = {
    "attention_bias": False, "attention_multiplier": 0.0078125, "embedding_multiplier": 12.0,
    "logits_scaling": 16.0, "mlp_bias": False, "residual_multiplier": 0.22, "rope_scaling": None,
}  # fmt: skip
# What transformers 4.38 and others wrote into config.json with every default.
_ALL_DEFAULTS = {
    "return_dict": True, "output_hidden_states": False, "torchscript": False, "pruned_heads": {},
    "tf_legacy_loss": False, "use_bfloat16": False, "chunk_size_feed_forward": 0, "max_length": 20,
    "tie_encoder_decoder": False, "min_length": 0, "do_sample": False, "early_stopping": False,
    "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0,
    "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0, "length_penalty": 1.0,
    "no_repeat_ngram_size": 0, "num_return_sequences": 1, "bad_words_ids": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "task_specific_params": None, "problem_type": None, "finetuning_task": None, "prefix": None,
}  # fmt: skip
_T5GEMMA = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "attention_bias": False,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "dropout_rate": 0.0,
    "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "rms_norm_eps": 1e-06,
    "layer_types": [_SLIDING, _FULL], "max_position_embeddings": 8192, "rope_theta": 10000.0,
    "model_type": "t5_gemma_module", "query_pre_attn_scalar": 16, "sliding_window": 4096,
    "torch_dtype": "bfloat16", "use_cache": True, "pad_token_id": 0,
}  # fmt: skip

PUBLISHED: Mapping[str, Fields] = {
    "Llama 2 7B": _llama(torch_dtype="float16", max_position_embeddings=4096),
    "Llama 3.1 8B": _llama(rope_scaling=_LLAMA_3, eos_token_id=[1, 2, 3]),
    "Llama 3.2 1B by Unsloth": _llama(
        rope_scaling=_LLAMA_3 | {"factor": 32.0}, head_dim=16, pad_token_id=4, unsloth_fixed=True
    ),
    "a fine-tune of Llama saved by 4.48": _llama(
        _attn_implementation_autoset=True, _name_or_path="meta-llama/Llama-3.1-8B",
        loss_type="ForCausalLMLoss", neftune_noise_alpha=5, gradient_checkpointing=True,
    ),
    "Vicuna 7B": _llama(
        max_sequence_length=2048, tokenizer_padding_side="right", tokenizer_model_max_length=2048,
        temperature=0.9, top_p=0.6, max_length=4096,
    ),
    "SmolLM2 135M": _llama(is_llama_config=True, rope_interleaved=False, **_JS),
    "SmolLM3 3B": _decoder(
        "SmolLM3", "smollm3", attention_bias=False, layer_types=[_FULL] * 2, max_window_layers=28,
        mlp_bias=False, no_rope_layer_interval=4, no_rope_layers=[1, 0], pretraining_tp=2,
        pad_token_id=0, rope_scaling=None, sliding_window=None, use_sliding_window=False, **_JS,
    ),
    "Qwen2.5 7B Instruct": _qwen2(),
    "Qwen2.5 3B Instruct": _qwen2(max_window_layers=70, tie_word_embeddings=True),
    "Qwen2.5 7B": _qwen2(use_mrope=False),
    "Qwen2.5 7B, its card's YaRN": _qwen2(
        rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    ),
    "Qwen2.5 7B 1M": _qwen2(
        dual_chunk_attention_config=_MILLION, max_position_embeddings=1010000, rope_scaling=None
    ),
    "Qwen3 8B": _qwen3(),
    "Qwen3 4B saved by 4.56": _qwen3(layer_types=[_FULL] * 2, dtype="bfloat16", unsloth_fixed=True),
    "Mistral 7B v0.1": _decoder("Mistral", "mistral", sliding_window=4096),
    "Mistral 7B v0.3": _decoder("Mistral", "mistral", sliding_window=None),
    "Mistral 7B v0.3, every default": _decoder(
        "Mistral", "mistral", sliding_window=None, **_ALL_DEFAULTS
    ),
    "Mistral Nemo": _decoder("Mistral", "mistral", sliding_window=None, head_dim=24),
    "Ministral 8B 2410": _decoder("Mistral", "mistral", sliding_window=32768, head_dim=24),
    "Ministral 3 3B, its text part": _decoder(
        "Ministral3", "ministral3", sliding_window=None, head_dim=24, rope_parameters=_MINISTRAL_3
    ),
    "Gemma 2B": _gemma("", "gemma", hidden_act="gelu", hidden_activation=None, rope_scaling=None),
    "Gemma 1.1 2B": _gemma("", "gemma", hidden_act="gelu_pytorch_tanh"),
    "Gemma 2 2B": _gemma2(),
    "Gemma 2 9B": _gemma2(sliding_window_size=4096),
    "Gemma 2 27B": _gemma2(sliding_window_size=4096, _attn_implementation="eager"),
    "Gemma 3 1B": _gemma3(cache_implementation="hybrid", sliding_window_pattern=6),
    "Gemma 3 270M": _gemma3(
        layer_types=_PATTERN, _sliding_window_pattern=6, use_bidirectional_attention=False
    ),
    "MedGemma 27B text": _gemma3(
        rope_scaling={"factor": 8.0, "rope_type": "linear"}, sliding_window_pattern=6
    ),
    "Phi-3 mini 4k": _phi3(sliding_window=2047),
    "Phi-3.5 mini": _phi3(rope_scaling=_LONG),
    "Phi-4 mini": _phi3(
        full_attn_mod=1, interpolate_factor=1, lm_head_bias=False, mlp_bias=False,
        partial_rotary_factor=0.75,
        rope_scaling=_LONG | {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6},
    ),
    "Phi-4": _phi3(sliding_window=None, original_max_position_embeddings=16384),
    "Granite 3.3 8B": _decoder("Granite", "granite", **_GRANITE),
    "OLMo 2 7B": _decoder("Olmo2", "olmo2", attention_bias=False, rope_scaling=None),
    "Flan-T5": _t5(n_positions=512, output_past=True, task_specific_params={"s": {"num_beams": 4}}),
    "Flan-T5 saved by 4.54": _t5(
        classifier_dropout=0.0, dense_act_fn="gelu_new", is_gated_act=True, torch_dtype="float32"
    ),
    "T5 3B": _t5(architectures=["T5WithLMHeadModel"], feed_forward_proj="relu"),
    "mT5": _t5("mt5", tokenizer_class="T5Tokenizer"),
    "umT5": _t5("umt5", scalable_attention=True, tie_word_embeddings=True, output_past=True),
    "BART large CNN": _bart(
        "Bart", "bart", _num_labels=3, activation_function="gelu", add_final_layer_norm=False,
        classif_dropout=0.0, classifier_dropout=0.0, force_bos_token_to_be_generated=True,
        forced_bos_token_id=0, forced_eos_token_id=2, length_penalty=2.0, min_length=56,
        no_repeat_ngram_size=3, normalize_before=False, output_past=True, prefix=" ",
        scale_embedding=False, task_specific_params={"s": {"num_beams": 4}},
    ),
    "mBART-50": _bart(
        "MBart", "mbart", _num_labels=3, add_bias_logits=False, add_final_layer_norm=True,
        normalize_before=True, normalize_embedding=True, static_position_embeddings=False,
        tokenizer_class="MBart50Tokenizer", forced_eos_token_id=2,
    ),
    "M2M100": _bart("M2M100", "m2m_100"),
    "NLLB 600M": _bart("M2M100", "m2m_100", tokenizer_class="NllbTokenizer", torch_dtype="float32"),
    "T5Gemma 2B": {
        "architectures": ["T5GemmaForConditionalGeneration"], "attention_dropout": 0.0,
        "classifier_dropout_rate": 0.0, "dropout_rate": 0.0, "encoder": _T5GEMMA,
        "decoder": _T5GEMMA | {"cross_attention_hidden_size": 64, "is_decoder": True},
        "eos_token_id": [1, 3], "initializer_range": 0.02, "is_encoder_decoder": True,
        "model_type": "t5gemma", "pad_token_id": 0, "bos_token_id": 2, "vocab_size": 64,
    },
    "Meditron 7B": _llama(max_position_embeddings=2048),
    "PMC-LLaMA 13B": _llama(pad_token_id=0, torch_dtype="float32"),
}  # fmt: skip
