"""A vocabulary as llguidance reads it, with tokens that it finds itself if it finds the same."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from deployments.engine.structured.vocabulary import Vocabulary

# What grammars ask for: JSON's signs, with and without what may stand beside them.
_TEXTS = (
    *('{"', '": "', '", "', '"}', "[", '["', "]", "], ", ": [", ", ", "null", "true", "false"),
    *("name", ' "é à ü"', "Ωμέγα", "0.5", "-12", "2024-05-01T10:00:00Z", "a\\n\\u00e9", "  \n x"),
    *("<|im_end|>", "</s>", "<s>", "<unk>"),
)


def make_tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    """Return a tokenizer of llguidance for a vocabulary.

    Its threads have to ask for the tokens of what must come next. They ask Python, and so each
    other, only where llguidance does not read the model's tokenizer as `vocabulary` does.
    """
    own = _own_tokenizer(vocabulary)
    if own is not None and _is_same(own, vocabulary):
        return own
    return LLTokenizer(TokenizerWrapper(vocabulary), eos_token=vocabulary.eos_ids)


def _own_tokenizer(vocabulary: Vocabulary) -> LLTokenizer | None:
    """Return the model's tokenizer as llguidance reads it; None if it does not.

    A special token has another name there, that no text has: llguidance would take it for its name.
    """
    backend = vocabulary.backend
    if backend is None:
        return None
    state: dict[str, Any] = json.loads(backend.to_str())
    state["truncation"] = state["padding"] = None
    prefix = secrets.token_hex(16)
    names: dict[str, str] = {}
    for token in state["added_tokens"]:
        if token["special"]:
            names[token["content"]] = token["content"] = f"{prefix}{token['id']}"
    _rename(state["model"], names)
    try:
        return LLTokenizer(json.dumps(state), n_vocab=vocabulary.size, eos_token=vocabulary.eos_ids)
    except ValueError:  # a kind that it does not know
        return None


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename tokens in the state of a model of `tokenizers`: BPE's, or Unigram's with scores."""
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): id_ for token, id_ in vocab.items()}
    elif vocab is not None:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]


def _is_same(own: LLTokenizer, vocabulary: Vocabulary) -> bool:
    """Return whether all tokens have the same bytes, and texts the same tokens."""
    if own.vocab_size != vocabulary.size or not own.is_canonical:
        return False
    special = frozenset(vocabulary.special_token_ids)
    for id_, data in enumerate(vocabulary.tokens):
        # No text has the byte 255, which marks special tokens there.
        is_special = id_ in special or data.startswith(b"\xff")
        if own.is_special_token(id_) != is_special:
            return False
        if not is_special and own.decode_bytes([id_]) != data:
            return False
    return all(own.tokenize_str(text) == vocabulary(text) for text in _TEXTS)
