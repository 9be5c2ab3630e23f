"""A base model's vocabulary as bytes, for grammars, which are about characters and not tokens."""

import functools
import string
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deployments.engine.detokenizer import hidden_ids, token_bytes

if TYPE_CHECKING:
    from deployments.engine.model_loader import Pretrained

# llguidance asks for the tokens of what has to come next at each token, most often of the same few
# texts. Asking takes a tenth of a millisecond and Python's lock, which all its threads wait for.
_CACHED_TEXTS = 4096
_CACHED_CHARS = 256  # of the longest text that is kept
_NEEDED = string.ascii_letters + string.digits + string.punctuation + " "


class Vocabulary:
    """Implement what llguidance's TokenizerWrapper asks for.

    Args:
        tokenizer: a transformers fast tokenizer.
        size: logits of the model, which may have more than the tokenizer has tokens.
        eos_ids: tokens that end an answer; without one, no grammar is compiled.
    """

    bos_token_id: int | None = None

    def __init__(self, tokenizer: Any, size: int, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self.size = size
        self.eos_ids = sorted(eos_ids)
        self._cached = functools.lru_cache(_CACHED_TEXTS)(self._tokens_of)

    @property
    def eos_token_id(self) -> int:
        return self.eos_ids[0]

    @functools.cached_property
    def tokens(self) -> list[bytes]:
        data_of = token_bytes(self._tokenizer)
        return [data_of(id_) for id_ in range(self.size)]

    @property
    def backend(self) -> Any:
        """Return the tokenizer of the `tokenizers` library; None: it is a slow one."""
        return getattr(self._tokenizer, "backend_tokenizer", None)

    @property
    def special_token_ids(self) -> list[int]:
        hidden = hidden_ids(self._tokenizer)
        return sorted({*hidden, *self.eos_ids, *range(len(self._tokenizer), self.size)})

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text that a grammar asks for: the name of a special token, as its
        letters. Prompts are read so too, which matters since tokenizers remember the last way."""
        return list(self._cached(text) if len(text) <= _CACHED_CHARS else self._tokens_of(text))

    def _tokens_of(self, text: str) -> tuple[int, ...]:
        plain = {"add_special_tokens": False, "split_special_tokens": True}
        return tuple(self._tokenizer.encode(text, **plain))


def refused_features(base: "Pretrained") -> dict[str, str]:
    """Return what answers of the fast decoder cannot do for a base, and why (DecoderInfo)."""
    refused = {}
    if base.family != "causal":
        why = "this model is an encoder-decoder, whose answer does not continue the prompt"
        refused["echo"] = why
    if why_not := no_structure(base):
        refused["structure"] = why_not
    return refused


def no_structure(base: "Pretrained") -> str | None:
    """Return why a base's answers cannot keep to a grammar; None if they can."""
    tokenizer = base.tokenizer
    if not base.eos_ids:
        return "this model has no token that ends an answer"
    if base.forced.first is not None:
        return "each answer of this model begins with a token that its configuration names"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "this model has a slow tokenizer"
    data_of = token_bytes(tokenizer)
    short = [id_ for token, id_ in backend.get_vocab().items() if len(token) in (1, len("<0x7B>"))]
    single = {data for id_ in short if len(data := data_of(id_)) == 1}
    missing = [letter for letter in _NEEDED if letter.encode() not in single]
    if not missing:
        return None
    return f"this model's tokenizer has no token for {' '.join(missing[:5])}"
