"""Load a base model's folder with transformers: weights, tokenizer, dtype, special tokens."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from deployments.engine.models.loaded_weights import config_of, load_weights
from deployments.engine.quantised.loader import LoaderConfig, stored_kind, wo_quantised
from deployments.engine.quantised.weight import Kind
from deployments.engine.request import ForcedTokens

logger = logging.getLogger(__name__)

Family = Literal["causal", "seq2seq"]
Quantization = Literal["none"] | Kind
Dtype = Literal["auto", "float32", "bfloat16"]

_FORCED = ("forced_bos_token_id", "forced_eos_token_id")
# Fields of a generation config with which `generate` picks other tokens, drawn or not: those that 1
# switches off, and those that 0 or nothing does.
_FACTORS = ("num_beams", "repetition_penalty", "encoder_repetition_penalty", "guidance_scale")
_RULES = (
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids suppress_tokens "
    "begin_suppress_tokens sequence_bias min_length min_new_tokens stop_strings constraints "
    "exponential_decay_length_penalty penalty_alpha dola_layers watermarking_config token_healing "
    "force_words_ids"
).split()


@dataclass(frozen=True, slots=True)
class Precision:
    """Hold the dtype of the base model's weights and why it was chosen."""

    dtype: torch.dtype
    reason: str


@dataclass(frozen=True, slots=True)
class Pretrained:
    """Hold a loaded base model, in evaluation mode on its device.

    `dtype_name` and `dtype_reason` are for /readyz. `decoder_start_id` is the token that an
    encoder-decoder model's answer begins with, unseen. `forced` are tokens that its generation
    configuration asks for. `side_positions`: of its prompt and of its answer, each.
    `with_bitsandbytes`: its quantised layers are those of bitsandbytes, which only the reference
    decoder runs.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    dtype_name: str
    dtype_reason: str
    quantization: Quantization
    eos_ids: frozenset[int]
    pad_id: int
    decoder_start_id: int | None
    is_dtype_free: bool = False  # nobody asked for this dtype
    with_bitsandbytes: bool = False
    forced: ForcedTokens = ForcedTokens()
    side_positions: int | None = None

    @property
    def num_token_ids(self) -> int:
        """Return how many tokens it has an embedding of; its tokenizer may have more, or fewer."""
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.num_embeddings)


def choose_precision(dtype: Dtype, device: str) -> Precision:
    """Choose the dtype of the base model's weights."""
    if dtype != "auto":
        return Precision(getattr(torch, dtype), "asked for in engine.dtype")
    if device.startswith("cuda"):
        return Precision(torch.bfloat16, "a GPU")
    capabilities = torch.cpu.get_capabilities()
    fast = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
    if fast:
        return Precision(torch.bfloat16, f"this processor has {fast[0]}")
    return Precision(torch.float32, "this processor has no bfloat16 instructions")


def load_pretrained(
    path: Path,
    family: Family,
    *,
    device: str,
    dtype: Dtype = "auto",
    quantization: Quantization = "none",
    with_bitsandbytes: bool = False,
) -> Pretrained:
    """Load a base model's folder. Only safetensors are read.

    Args:
        path: a folder with config.json, safetensors and tokenizer files.
        device: "cpu", "cuda" or "cuda:N".
        quantization: of linear layers; none: as the folder has them. They are quantised one by one
            as they are read (quantised/loader.py), or by bitsandbytes if `with_bitsandbytes`.

    Raises:
        OSError, ValueError: the folder lacks a file or a weight, transformers cannot read it, or
            its weights are quantised already, and otherwise.
    """
    transformers_logging.disable_progress_bar()  # a server's log is not a terminal
    precision = choose_precision(dtype, device)
    config = config_of(path, precision.dtype)
    stored = stored_kind(config)
    kind = stored if quantization == "none" else quantization
    if stored not in (None, kind):
        raise ValueError(f"{path}: its weights are in {stored} already, and {kind} is asked for")
    options: dict[str, Any] = {"dtype": precision.dtype}
    if _is_capped(config):  # torch's own function knows no soft cap, and older transformers take it
        options["attn_implementation"] = "eager"
    leaving: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if kind is not None:
        options["device_map"] = {"": device}
    if kind is not None and not with_bitsandbytes:
        config.__dict__.pop("quantization_config", None)
        own = LoaderConfig(kind, is_stored=stored is not None)
        options["quantization_config"] = own
    elif kind is not None and stored is None:
        options["quantization_config"] = bitsandbytes_config(kind, precision.dtype)
        if kind == "nf4":
            leaving = wo_quantised()
    model_class = AutoModelForCausalLM if family == "causal" else AutoModelForSeq2SeqLM
    with leaving:
        model = load_weights(model_class, path, config, **options)
    if kind is None:
        model = model.to(device)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    stated = str(precision.dtype).removeprefix("torch.")
    if kind is not None:
        stated = f"{kind} ({stated} activations)"
    return wrap_pretrained(
        model,
        tokenizer,
        family,
        dtype_name=stated,
        dtype_reason="as its folder has it" if stored else precision.reason,
        quantization=kind or "none",
        is_dtype_free=dtype == "auto",
        with_bitsandbytes=with_bitsandbytes and kind is not None,
    )


def _is_capped(config: Any) -> bool:
    """Return whether attention has a soft cap (Gemma 2, T5Gemma)."""
    parts = (config, *(getattr(config, half, None) for half in ("encoder", "decoder")))
    return any(getattr(part, "attn_logit_softcapping", None) for part in parts)


def wrap_pretrained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    *,
    dtype_name: str,
    dtype_reason: str,
    quantization: Quantization = "none",
    is_dtype_free: bool = False,
    with_bitsandbytes: bool = False,
) -> Pretrained:
    """Wrap a model that is in memory already, and look up its special tokens."""
    start_id = model.generation_config.decoder_start_token_id
    if start_id is None:
        start_id = getattr(model.config, "decoder_start_token_id", None)
    if start_id is None and family == "seq2seq":
        start_id = model.generation_config.bos_token_id  # as transformers does
    eos_ids = _eos_ids(model, tokenizer)
    if asked := _not_followed(model.generation_config, family):
        logger.warning(
            "the base model's generation_config.json, else config.json, asks for %s, which is not "
            "followed: answers are greedy, or drawn as a request says, and the rules against "
            "repetition are those of base_models in the catalogue",
            ", ".join(asked),
        )
    return Pretrained(
        model=model.eval(),
        tokenizer=tokenizer,
        family=family,
        dtype_name=dtype_name,
        dtype_reason=dtype_reason,
        quantization=quantization,
        eos_ids=eos_ids,
        pad_id=_pad_id(model, tokenizer, eos_ids),
        decoder_start_id=start_id,
        is_dtype_free=is_dtype_free,
        with_bitsandbytes=with_bitsandbytes,
        forced=ForcedTokens() if family == "causal" else _forced(model),
        side_positions=None if family == "causal" else _side_positions(model),
    )


def _forced(model: PreTrainedModel) -> ForcedTokens:
    """Return what an encoder-decoder's generation config forces.

    Without a file of its own, transformers makes that from what config.json states: what BART's
    class has by default forces nothing.
    """
    values = [getattr(model.generation_config, name, None) for name in _FORCED]
    return ForcedTokens(*(min(v) if isinstance(v, list | tuple) else v for v in values))


def _not_followed(generation: Any, family: Family) -> list[str]:
    """Return the fields that would change what `generate` picks without drawing, with values."""
    off: dict[str, tuple[Any, ...]] = dict.fromkeys(_FACTORS, (None, 1))
    off |= dict.fromkeys(_RULES, (None, 0, [], {}))
    off |= dict.fromkeys(_FORCED if family == "causal" else (), (None,))
    values = {name: getattr(generation, name, None) for name in off}
    return [f"{name} {value}" for name, value in values.items() if value not in off[name]]


def _side_positions(model: PreTrainedModel) -> int | None:
    """Return the positions of an encoder-decoder that has a table of them. None: it has none."""
    table = getattr(model.get_encoder(), "embed_positions", None)
    return model.config.max_position_embeddings if isinstance(table, torch.nn.Embedding) else None


def bitsandbytes_config(kind: Kind, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return what bitsandbytes is asked for, in serving and in training.

    Raises:
        ValueError: it has no such kind.
    """
    if kind == "fp8":
        raise ValueError("bitsandbytes has no fp8: the fast decoder alone serves it")
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # T5 casts the input of `wo` to its weight's dtype, which must not be uint8.
        bnb_4bit_quant_storage=dtype,
    )


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that end an answer, from generation config, else config, else tokenizer."""
    for source in (model.generation_config, model.config, tokenizer):
        eos = getattr(source, "eos_token_id", None)
        if eos is not None and eos != []:
            return _checked_eos(eos if isinstance(eos, list | tuple) else [eos], model)
    raise ValueError(
        "the base model names no end-of-sequence token (eos_token_id) in generation_config.json, "
        "config.json or its tokenizer: add it, or its answers would never end"
    )


def _checked_eos(eos: Sequence[Any], model: PreTrainedModel) -> frozenset[int]:
    """Return the ids that end an answer.

    Raises:
        ValueError: one is no number, or the model has none of them.
    """
    size = _vocab_size(model)
    is_number = all(isinstance(id_, int) and not isinstance(id_, bool) for id_ in eos)
    if not is_number or not any(0 <= id_ < size for id_ in eos):
        raise ValueError(
            f"the base model's eos_token_id is {list(eos)!r}, and its vocabulary has the ids 0 to "
            f"{size - 1}: its answers would never end; correct it in generation_config.json, else "
            "in config.json"
        )
    if strange := [id_ for id_ in eos if not 0 <= id_ < size]:
        logger.warning(
            "the base model's eos_token_id has %s, which its vocabulary of %d has not: answers end "
            "with the others",
            strange,
            size,
        )
    return frozenset(eos)


def _vocab_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _pad_id(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]
) -> int:
    """Return what fills prompts up. Many tokenizers have a token for it that the model has not, and
    the first Llama's config.json says -1."""
    size = _vocab_size(model)
    for source in (tokenizer, model.config):
        pad = getattr(source, "pad_token_id", None)
        if pad is not None and 0 <= pad < size:
            return int(pad)
    return min(id_ for id_ in eos_ids if 0 <= id_ < size)
