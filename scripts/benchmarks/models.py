"""Models and adapters to measure with: real folders, or the shapes of large models at random.

Small real tokenizers for models with random weights; nothing is downloaded.

`num_tokens` fills the vocabulary up with further words (w400, w401, ...), so that every id that a
large random model writes has a text.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
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

from adapters.base_models import resolve_base_model
from deployments.engine.model_loader import (
    Dtype,
    Family,
    Pretrained,
    choose_precision,
    load_pretrained,
    wrap_pretrained,
)

SENTENCES = (
    "What is eczema? Eczema makes the skin red, dry and itchy.",
    "How is high blood pressure treated? With drugs, less salt and more walking.",
    "What causes migraine? Stress, light, noise and some foods can trigger it.",
    "You are a medical assistant. Answer the question clearly and briefly. Answer in English.",
    "Quels sont les symptômes de l'asthme ? La toux et un souffle court.",
    "My heart races when I climb the stairs, and the treatment of my rash did not help.",
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPACE = "\u2581"


def byte_pair_tokenizer(num_tokens: int | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML, as Llama's kin have it; the end of a turn is token 2."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if num_tokens is not None:
        content = json.loads(tokenizer.to_str())
        vocabulary = content["model"]["vocab"]
        space = "\u0120"  # byte-level BPE's sign for it
        vocabulary |= {f"{space}w{n}": n for n in range(len(vocabulary), num_tokens)}
        tokenizer = Tokenizer.from_str(json.dumps(content))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML
    return fast


def unigram_tokenizer(num_tokens: int | None = None) -> PreTrainedTokenizerFast:
    """Sentence-piece manners as T5's: metaspace, </s> appended by the post-processor.

    The pieces are written down rather than trained: tokenizers' unigram trainer gives another
    vocabulary from run to run.
    """
    words = sorted({f"{_SPACE}{word}" for text in SENTENCES for word in text.split()})
    letters = sorted({_SPACE, *(letter for text in SENTENCES for letter in text if letter != " ")})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(word, -2.0) for word in words if len(word) > 2]
    pieces += [(letter, -4.0) for letter in letters]
    if num_tokens is not None:
        pieces += [(f"{_SPACE}w{n}", -9.0) for n in range(len(pieces), num_tokens)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


_FLAN_T5_XL = {
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 32,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "scale_decoder_outputs": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_LLAMA_1B = {
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


class NumberTokenizer:
    """Text for random weights: each token is its number."""

    pad_token_id: int | None = None
    eos_token_id: int | None = None

    def decode(self, token_ids: Sequence[int], **_: object) -> str:
        return "".join(f" {token_id}" for token_id in token_ids)


def load_base(name: str, device: str, dtype: Dtype) -> Pretrained:
    """A base model by name or folder; `flan-t5-xl-shape` and `llama-1b-shape` have random weights
    that are the same from call to call."""
    if name == "flan-t5-xl-shape":
        return _random(T5ForConditionalGeneration, T5Config(**_FLAN_T5_XL), device, dtype)
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


def save_base(name: str, folder: Path, device: str, dtype: Dtype) -> Path:
    """`load_base` as a folder that a replica can load, with a small tokenizer of the model's size.

    Only for the shapes with random weights, which have no folder of their own.
    """
    base = load_base(name, device, dtype)
    make = unigram_tokenizer if base.family == "seq2seq" else byte_pair_tokenizer
    base.model.save_pretrained(folder)
    make(base.model.config.vocab_size).save_pretrained(folder)
    return folder


def load_skeleton(folder: Path) -> Any:
    """A folder's model without weights, for its layers' names and shapes."""
    config = AutoConfig.from_pretrained(folder)
    is_t5 = config.is_encoder_decoder
    with torch.device("meta"):
        return (AutoModelForSeq2SeqLM if is_t5 else AutoModelForCausalLM).from_config(config)


def rank_of_size(model: Any, num_bytes: int, targets: Sequence[str] | None) -> int:
    """The rank whose adapter file comes nearest to `num_bytes`, from 1."""
    shapes = _lora_shapes(model, _lora_config(model, 1, targets))
    bytes_per_rank = 4 * sum(shape.numel() for shape in shapes.values())  # float32
    return max(1, round(num_bytes / bytes_per_rank))


def make_random_adapters(
    model: Any,
    folder: Path,
    *,
    num: int,
    rank: int,
    targets: Sequence[str] | None,
    first_seed: int = 0,
) -> dict[str, Path]:
    """`num` LoRA adapters with random A and B, as folders; the model is left as it was.

    `targets`: names of linear layers; None: the q and v projections. Another `first_seed`: other
    weights.
    """
    config = _lora_config(model, rank, targets)
    shapes = _lora_shapes(model, config)
    return {
        f"a{number}": _write_adapter(folder / f"a{number}", config, shapes, first_seed + number)
        for number in range(num)
    }


def _lora_config(model: Any, rank: int, targets: Sequence[str] | None) -> LoraConfig:
    is_t5 = model.config.is_encoder_decoder
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets or (["q", "v"] if is_t5 else ["q_proj", "v_proj"])),
        task_type="SEQ_2_SEQ_LM" if is_t5 else "CAUSAL_LM",
        init_lora_weights=False,
    )


def _lora_shapes(model: Any, config: LoraConfig) -> dict[str, torch.Size]:
    """Name in the adapter's file -> shape."""
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    wrapped = get_peft_model(skeleton, config)
    return {
        name.replace(".default.", "."): parameter.shape
        for name, parameter in wrapped.named_parameters()
        if "lora_" in name
    }


def _write_adapter(
    folder: Path, config: LoraConfig, shapes: dict[str, torch.Size], seed: int
) -> Path:
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator) * (shape[1] ** -0.5 if "_A" in name else 0.02)
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True)
    config.save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
