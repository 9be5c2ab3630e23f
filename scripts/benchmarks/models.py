"""Base models to measure with: real folders, or large shapes with random weights.

Models with random weights get a tokenizer in which every id has a text; nothing is downloaded.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from adapters.bases.models import resolve_base_model
from deployments.engine.model_loader import (
    Dtype,
    Family,
    Pretrained,
    choose_precision,
    load_pretrained,
    wrap_pretrained,
)

FLAN_T5_XL = {  # config.json of google/flan-t5-xl (2.85 billion parameters)
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 32,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "scale_decoder_outputs": False,
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_LLAMA_1B = {  # config.json of Llama 3.2 1B, with a small context and our end token
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
RANDOM_SHAPES = ("flan-t5-xl-shape", "llama-1b-shape")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def word_tokenizer(words: Sequence[str], family: Family) -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words, from id 3; any other word is unknown.

    Ids 0 to 2 are the special tokens that RANDOM_SHAPES expect: T5's, or ChatML's.
    """
    is_t5 = family == "seq2seq"
    special = ("<pad>", "</s>", "<unk>") if is_t5 else ("<unk>", "<|im_start|>", "<|im_end|>")
    vocabulary = {word: number for number, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if is_t5:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    end, pad = ("</s>", "<pad>") if is_t5 else ("<|im_end|>", "<|im_end|>")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=pad,
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    if not is_t5:
        fast.chat_template = CHATML
    return fast


class NumberTokenizer:
    """Writes each token as its number: text for random weights."""

    pad_token_id: int | None = None
    eos_token_id: int | None = None
    added_tokens_decoder: Mapping[int, Any] = {}

    def decode(self, token_ids: Sequence[int], **_: object) -> str:
        return "".join(f" {token_id}" for token_id in token_ids)


def load_base(name: str, device: str, dtype: Dtype) -> Pretrained:
    """Load a base model by name or folder, or one of RANDOM_SHAPES.

    Random weights are the same from call to call.
    """
    if name == "flan-t5-xl-shape":
        base = _random(T5ForConditionalGeneration, T5Config(**FLAN_T5_XL), device, dtype)
        _give_own_head(base.model)
        return base
    if name == "llama-1b-shape":
        return _random(LlamaForCausalLM, LlamaConfig(**_LLAMA_1B), device, dtype)
    resolved = resolve_base_model(name, progress=False)
    return load_pretrained(resolved.path, resolved.family, device=device, dtype=dtype)


def _random(model_class: Any, config: Any, device: str, dtype: Dtype) -> Pretrained:
    precision = choose_precision(dtype, device)
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(precision.dtype)
    try:
        with torch.device(device):
            model = model_class(config)
    finally:
        torch.set_default_dtype(previous)
    family: Family = "seq2seq" if config.is_encoder_decoder else "causal"
    return wrap_pretrained(
        model,
        NumberTokenizer(),
        family,
        dtype_name=str(precision.dtype).removeprefix("torch."),
        dtype_reason=precision.reason,
    )


def _give_own_head(model: Any) -> None:
    """Untie the head, which transformers ties in every T5 that is built from a config.

    With a tied one and random weights, each answer is its start token again and again: no text.
    """
    embedding = model.shared.weight
    head = torch.empty_like(embedding).normal_(std=embedding.shape[1] ** -0.5)
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    model.config.tie_word_embeddings = False


def save_base(name: str, folder: Path, device: str, dtype: Dtype) -> Path:
    """Write one of RANDOM_SHAPES as a folder that a replica can load; return the folder.

    Its tokenizer has a word for each id of the model's vocabulary: w3, w4, ...
    """
    base = load_base(name, device, dtype)
    base.model.save_pretrained(folder)
    words = [f"w{number}" for number in range(3, base.model.config.vocab_size)]
    word_tokenizer(words, base.family).save_pretrained(folder)
    return folder


def load_skeleton(folder: Path) -> Any:
    """Load a folder's model without weights, for the names and shapes of its layers."""
    config = AutoConfig.from_pretrained(folder)
    is_t5 = config.is_encoder_decoder
    with torch.device("meta"):
        return (AutoModelForSeq2SeqLM if is_t5 else AutoModelForCausalLM).from_config(config)
