"""Small real tokenizers for the tiny models: byte-level BPE and SentencePiece-like unigram."""

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from scripts.benchmarks.models import CHATML

SENTENCES = (
    "What is eczema? Eczema makes the skin red, dry and itchy.",
    "How is high blood pressure treated? With drugs, less salt and more walking.",
    "What causes migraine? Stress, light, noise and some foods can trigger it.",
    "You are a medical assistant. Answer the question clearly and briefly. Answer in English.",
    "Quels sont les symptômes de l'asthme ? La toux et un souffle court.",
    "My heart races when I climb the stairs, and the treatment of my rash did not help.",
)
_SPACE = "\u2581"


def byte_pair_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with ChatML, as Llama models have; token 2 ends a turn."""
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


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """Build a SentencePiece-like tokenizer as T5's: metaspace, `</s>` appended to every text.

    The pieces are listed rather than trained, because tokenizers' unigram trainer gives another
    vocabulary from run to run.
    """
    words = sorted({f"{_SPACE}{word}" for text in SENTENCES for word in text.split()})
    letters = sorted({_SPACE, *(letter for text in SENTENCES for letter in text if letter != " ")})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(word, -2.0) for word in words if len(word) > 2]
    pieces += [(letter, -4.0) for letter in letters]
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
