"""llguidance's own reading of a tokenizer: taken where it says the same, and only there."""

import random
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLTokenizer, TokenizerWrapper
from tokenizers import decoders, pre_tokenizers
from transformers import AutoTokenizer

from deployments.engine.structured import tokenizer as tokenizer_module
from deployments.engine.structured.tokenizer import make_tokenizer
from deployments.engine.structured.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama_dir)


def vocabulary_of(tokenizer: Any, spare: int = 0) -> Vocabulary:
    return Vocabulary(tokenizer, len(tokenizer) + spare, [tokenizer.eos_token_id])


def in_python(vocabulary: Vocabulary) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=vocabulary.eos_ids)


@pytest.mark.parametrize("spare", [0, 7])
def test_a_byte_level_tokenizer_is_read_by_llguidance(
    tokenizer: Any, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = vocabulary_of(tokenizer, spare)
    asked = in_python(vocabulary)
    monkeypatch.setattr(tokenizer_module, "TokenizerWrapper", None)  # not called
    own = make_tokenizer(vocabulary)
    assert own.vocab_size == len(tokenizer) + spare
    assert own.eos_tokens == [tokenizer.eos_token_id]
    names = [token.content for token in tokenizer.added_tokens_decoder.values()]
    chars = [*' "{}:,[]\\\n0aé中🙂', "word", *names]
    for seed in range(200):
        text = "".join(random.Random(seed).choices(chars, k=12))
        assert own.tokenize_str(text) == asked.tokenize_str(text)
        assert own.decode_bytes(own.tokenize_str(text)) == text.encode()


@pytest.mark.parametrize("name", ["llama", "flan_t5"])
def test_what_python_says_counts(name: str, tiny_catalogs: Any) -> None:
    """Whichever of the two is taken."""
    vocabulary = vocabulary_of(AutoTokenizer.from_pretrained(tiny_catalogs[name][0]))
    made, asked = make_tokenizer(vocabulary), in_python(vocabulary)
    for text in ('{"a": "x"}', "[1, 2]", "null"):
        assert made.tokenize_str(text) == asked.tokenize_str(text)
    for id_ in set(range(vocabulary.size)) - set(vocabulary.special_token_ids):
        if vocabulary.tokens[id_] != b"\xff":  # which no text has, and marks special tokens there
            assert made.decode_bytes([id_]) == vocabulary.tokens[id_]


def test_another_reading_is_not_taken(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[LLTokenizer | None] = []

    def tokenize(vocabulary: Vocabulary) -> LLTokenizer:
        made.append(LLTokenizer(vocabulary.backend.to_str(), n_vocab=vocabulary.size))
        return made[-1]

    monkeypatch.setattr(tokenizer_module, "_own_tokenizer", tokenize)
    vocabulary = vocabulary_of(tokenizer)
    # Names of special tokens are theirs there, and letters for us.
    assert make_tokenizer(vocabulary) is not made[-1]
    name = "<|im_end|>"
    assert (
        len(made[-1].tokenize_str(name)) == 1 < len(make_tokenizer(vocabulary).tokenize_str(name))
    )


@pytest.mark.parametrize("changed", ["pre_tokenizer", "decoder"])
def test_a_tokenizer_that_llguidance_does_not_know(tiny_llama_dir: Path, changed: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    if changed == "decoder":
        tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    vocabulary = vocabulary_of(tokenizer)
    made = make_tokenizer(vocabulary)
    for text in ('{"a": "x"}', "[1, 2]"):
        assert made.tokenize_str(text) == vocabulary(text)
