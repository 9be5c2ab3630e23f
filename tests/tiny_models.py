"""Recipes for tiny random models with a real tokenizer, and live LoRA adapters for them.

Nothing is downloaded. Weights are large enough that adapters change greedy answers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adapters.catalog import BaseModelEntry, Catalog
from adapters.prompting import PromptFormat
from adapters.seed import seed_version, write_seed
from adapters.versions import RegisteredAdapter
from scripts.benchmarks.bases.models import CHATML
from tests.tiny_tokenizers import byte_pair_tokenizer, unigram_tokenizer


def make_tiny_llama(folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """Llama-style: 2 layers, grouped-query attention, tied embeddings, byte-level BPE, ChatML.

    `options` are further fields of LlamaConfig.
    """
    torch.manual_seed(seed)
    tokenizer = byte_pair_tokenizer()
    config = LlamaConfig(**llama_fields(tokenizer) | options)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_qwen2(folder: Path, *, seed: int = 0) -> Path:
    """Qwen2: a bias on q, k and v, an output layer of its own."""
    torch.manual_seed(seed)
    tokenizer = byte_pair_tokenizer()
    fields = llama_fields(tokenizer) | {"tie_word_embeddings": False}
    model = Qwen2ForCausalLM(Qwen2Config(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return dict(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_tiny_flan_t5(folder: Path, *, seed: int = 0) -> Path:
    """As flan-t5 is stored: gated-gelu, a head of its own, logits that are not scaled.

    transformers ties the head of every T5 that is built from a config, whatever the config says,
    so the separate head is written into the saved folder.
    """
    folder = _make_tiny_t5(folder, seed, feed_forward_proj="gated-gelu")
    weights = folder / "model.safetensors"
    state = load_file(weights)
    generator = torch.Generator().manual_seed(seed + 1)
    shape = state["shared.weight"].shape
    state["lm_head.weight"] = torch.randn(shape, generator=generator) * 0.3
    save_file(state, weights, metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    path.write_text(json.dumps(config, indent=2))
    return folder


def make_tiny_relu_t5(folder: Path, *, seed: int = 0) -> Path:
    """As the first T5: ReLU, tied head, scaled logits."""
    return _make_tiny_t5(folder, seed, feed_forward_proj="relu")


def _make_tiny_t5(folder: Path, seed: int, *, feed_forward_proj: str) -> Path:
    torch.manual_seed(seed)
    tokenizer = unigram_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        feed_forward_proj=feed_forward_proj,
        dropout_rate=0.0,
        initializer_factor=1.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():  # T5's own initialisation gives attention next to no voice at this size
        for name, parameter in model.named_parameters():
            if "Attention" in name and parameter.dim() == 2:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(
    base: Path,
    folder: Path,
    *,
    base_name: str,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] | None = None,
    std: float = 1.0,
    **options: Any,
) -> Path:
    """A LoRA adapter whose B is random, not zero: it changes the base's answers.

    `options` are further fields of LoraConfig.
    """
    model = load_model(base)
    is_t5 = model.config.is_encoder_decoder
    torch.manual_seed(seed)
    fields = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets or (["q", "v"] if is_t5 else ["q_proj", "v_proj"])),
        "task_type": "SEQ_2_SEQ_LM" if is_t5 else "CAUSAL_LM",
    }
    config = LoraConfig(**fields | options)
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:  # zeros at first
                parameter.normal_(std=std)
            if "lora_magnitude_vector" in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    peft_model.peft_config["default"].base_model_name_or_path = base_name
    peft_model.save_pretrained(folder)
    return folder


def make_catalog(
    folder: Path,
    base: Path,
    *,
    prompt_format: PromptFormat,
    adapters: dict[str, str],
    languages: Sequence[str] = ("en",),
) -> Path:
    """A catalogue folder for `base` with an adapter for each name -> specialty."""
    listed = []
    for seed, (name, specialty) in enumerate(adapters.items(), start=1):
        path = f"weights/{name}"
        made = make_adapter(base, folder / path, base_name=str(base), seed=seed)
        listed.append(
            RegisteredAdapter(
                name=name,
                specialty=specialty,
                base_model=str(base),
                state="active",
                version="1",
                versions=[seed_version(made, path, version="1", rank=4)],
            )
        )
    base_entry = BaseModelEntry(
        name=str(base),
        prompt_format=prompt_format,
        system_line="You are a medical assistant.",
        languages=list(languages),
    )
    write_seed(folder, Catalog(revision=0, base_models=[base_entry], adapters=listed))
    return folder


def load_model(folder: Path) -> PreTrainedModel:
    """The model of a folder, in float32."""
    config = json.loads((folder / "config.json").read_text())
    seq2seq = config.get("is_encoder_decoder", False)
    model_class = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    options = {"attn_implementation": "eager"} if _is_capped(config) else {}
    return model_class.from_pretrained(folder, dtype=torch.float32, **options).eval()


def _is_capped(config: Mapping[str, Any]) -> bool:
    """Transformers before 5.23 takes torch's attention by default, which leaves soft caps out."""
    parts = (config, config.get("encoder") or {}, config.get("decoder") or {})
    return any(part.get("attn_logit_softcapping") for part in parts)


def make_tiny_gguf(base: Path, file: Path) -> Path:
    """A tiny Llama folder as GGUF, laid out as llama.cpp's converter does for SmolLM2."""
    config = json.loads((base / "config.json").read_text())
    vocabulary = json.loads((base / "tokenizer.json").read_text())
    writer = GGUFWriter(file, "llama", use_temp_file=False)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["q_proj"])
    writer.add_head_count_kv(heads["k_proj"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    _add_gguf_tokenizer(writer, vocabulary, config)
    for name, tensor in load_file(base / "model.safetensors").items():
        if name == "lm_head.weight":
            continue
        kind = name.split(".")[-2]
        if kind in heads:
            rows, columns = tensor.shape
            split = tensor.reshape(heads[kind], 2, rows // heads[kind] // 2, columns)
            tensor = split.swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(_gguf_name(name), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_gguf_tokenizer(
    writer: GGUFWriter, vocabulary: dict[str, Any], config: dict[str, Any]
) -> None:
    ids = vocabulary["model"]["vocab"]
    tokens = sorted(ids, key=lambda token: ids[token])
    special = {added["content"] for added in vocabulary["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_unk_token_id(ids["<|endoftext|>"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template(CHATML)


def _gguf_name(name: str) -> str:
    names = {
        "embed_tokens": "token_embd",
        "norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    parts = name.split(".")
    block = f"blk.{parts[2]}." if parts[1] == "layers" else ""
    return f"{block}{names[parts[-2]]}.weight"
