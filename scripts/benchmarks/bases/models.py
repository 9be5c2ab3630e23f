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
    PreTrainedTokenizerFast,
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
from scripts.benchmarks.bases.shapes import SHAPES, config_of

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def word_tokenizer(words: Sequence[str], family: Family) -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words, from id 3; any other word is unknown.

    Ids 0 to 2 are the special tokens that SHAPES expect: T5's, or ChatML's.
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
    """Load a base model by name or folder, or one of SHAPES.

    Random weights are the same from call to call.
    """
    if name in SHAPES:
        return load_shape(name, device, dtype)
    resolved = resolve_base_model(name, progress=False)
    return load_pretrained(resolved.path, resolved.family, device=device, dtype=dtype)


def load_shape(name: str, device: str, dtype: Dtype, layers: int | None = None) -> Pretrained:
    """Make one of SHAPES with random weights, of fewer layers if `layers` says so."""
    config = config_of(name, layers)
    model_class = _class_for(config)
    precision = choose_precision(dtype, device)
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(precision.dtype)
    try:
        with torch.device(device):
            model = model_class.from_config(config)
    finally:
        torch.set_default_dtype(previous)
    family: Family = "seq2seq" if config.is_encoder_decoder else "causal"
    if config.is_encoder_decoder:
        _give_own_head(model)
    return wrap_pretrained(
        model,
        NumberTokenizer(),
        family,
        dtype_name=str(precision.dtype).removeprefix("torch."),
        dtype_reason=precision.reason,
    )


def _class_for(config: Any) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _give_own_head(model: Any) -> None:
    """Untie the head, which transformers ties in every T5 that is built from a config.

    With a tied one and random weights, each answer is its start token again and again: no text.
    """
    embedding = model.shared.weight
    head = torch.empty_like(embedding).normal_(std=embedding.shape[1] ** -0.5)
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    model.config.tie_word_embeddings = False


def save_base(name: str, folder: Path, device: str, dtype: Dtype) -> Path:
    """Write one of SHAPES as a folder that a replica can load; return the folder.

    Its tokenizer has a word for each id of the model's vocabulary: w3, w4, ...
    """
    base = load_base(name, device, dtype)
    base.model.save_pretrained(folder)
    words = [f"w{number}" for number in range(3, base.model.config.vocab_size)]
    word_tokenizer(words, base.family).save_pretrained(folder)
    return folder


def saved_or_found(name: str, folder: Path, device: str, dtype: Dtype) -> tuple[Path, Family]:
    """Return a base's folder and family; one of SHAPES is written to `folder` first."""
    if name in SHAPES:
        family: Family = "seq2seq" if config_of(name).is_encoder_decoder else "causal"
        return save_base(name, folder, device, dtype), family
    resolved = resolve_base_model(name, progress=False)
    return resolved.path, resolved.family


def load_skeleton(folder: Path) -> Any:
    """Load a folder's model without weights, for the names and shapes of its layers."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return _class_for(config).from_config(config)
