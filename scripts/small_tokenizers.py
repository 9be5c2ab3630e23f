"""Small real tokenizers for models with random weights; nothing is downloaded.

`num_tokens` fills the vocabulary up with further words (w400, w401, ...), so that every id that a
large random model writes has a text.
"""

import json

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
