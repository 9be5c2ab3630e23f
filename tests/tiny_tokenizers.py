"""Small real tokenizers of every kind, the tiny models' among them."""

import functools
from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from scripts.benchmarks.bases.models import CHATML

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


def byte_fallback_tokenizer(*, legacy: bool = True) -> PreTrainedTokenizerFast:
    """Build a SentencePiece BPE as Llama 2's and Mistral's: words, letters, and 256 byte tokens.

    legacy: every piece of a text between special tokens begins with a space, not the first alone.
    """
    words = sorted({f"{_SPACE}{word}" for text in SENTENCES for word in text.split()})
    letters = sorted({_SPACE, *(letter for word in words for letter in word)})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
                tokens.append(word[:end])
    vocabulary = {token: id_ for id_, token in enumerate(dict.fromkeys(tokens))}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    if legacy:
        steps = [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """Build a WordPiece tokenizer as BERT's: words, and letters that begin or continue one."""
    words = sorted({word.lower().strip("?.,") for text in SENTENCES for word in text.split()})
    letters = sorted({letter for text in SENTENCES for letter in text.lower() if letter != " "})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokens = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {token: id_ for id_, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        clean_up_tokenization_spaces=True,
    )


def _t5_with_sentinels() -> PreTrainedTokenizerFast:
    tokenizer = unigram_tokenizer()
    sentinels = [AddedToken(f"<extra_id_{i}>", special=True) for i in range(3)]
    tokenizer.add_special_tokens({"additional_special_tokens": sentinels})
    tokenizer.add_tokens(["<ordinary>"])
    return tokenizer


def _byte_pairs_that_tidy() -> PreTrainedTokenizerFast:
    tokenizer = byte_pair_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    return tokenizer


TOKENIZER_KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level BPE": byte_pair_tokenizer,
    "byte-level BPE, clean_up_tokenization_spaces": _byte_pairs_that_tidy,
    "SentencePiece unigram": _t5_with_sentinels,
    "SentencePiece BPE with bytes": byte_fallback_tokenizer,
    "SentencePiece BPE with bytes, not legacy": functools.partial(
        byte_fallback_tokenizer, legacy=False
    ),
    "WordPiece": word_piece_tokenizer,
}
