"""The texts, places and log-probabilities of an answer's tokens, where a client asks for them."""

import codecs
from collections.abc import Callable, Iterable

from deployments.engine.detokenizer import Decode
from deployments.engine.request import ScoredToken, TokenScore

TokenBytes = Callable[[int], bytes]


class ScoredText:
    """Give scores their texts, and hand them out with the text that their tokens are part of.

    Args:
        data_of: the bytes of a token.
        hidden_ids: tokens without text.
    """

    def __init__(self, decode: Decode, data_of: TokenBytes, hidden_ids: frozenset[int]) -> None:
        self._decode = decode
        self._data_of = data_of
        self._hidden_ids = hidden_ids
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        self._has_text = False
        self._waiting: list[ScoredToken] = []

    def add(self, scores: Iterable[TokenScore]) -> None:
        """Take the scores of further tokens, in order."""
        for score in scores:
            self._waiting.append(self._scored(score))

    def release(self, num_characters: int | None) -> tuple[ScoredToken, ...]:
        """Return, once, the tokens that begin within so many characters of the text; None: all."""
        count = len(self._waiting)
        if num_characters is not None:
            count = sum(token.offset < num_characters for token in self._waiting)
        released, self._waiting = self._waiting[:count], self._waiting[count:]
        return tuple(released)

    def _scored(self, score: TokenScore) -> ScoredToken:
        data = self._data_of(score.token_id)
        is_text = score.token_id not in self._hidden_ids
        if is_text and not self._is_continued_by(data[:1]):
            self._offset += len(self._characters.decode(b"", final=True))
        offset = self._offset
        if is_text:
            self._offset += len(self._characters.decode(data)) - self._num_dropped(score.token_id)
        top = tuple((*self._texts(id_), logprob) for id_, logprob in score.top)
        text, data = self._texts(score.token_id)
        return ScoredToken(text, data, offset, score.logprob, top, is_text)

    def _is_continued_by(self, byte: bytes) -> bool:
        """Return whether a character that was begun before may go on with this byte; else what was
        begun is no character, and stands before the byte's token."""
        begun, _ = self._characters.getstate()
        return not begun or len((begun + byte).decode(errors="replace")) == 1

    def _num_dropped(self, token_id: int) -> int:
        """Return 1 for the space of a text's first word where the tokenizer drops it."""
        is_first, self._has_text = not self._has_text, True
        is_spaced = is_first and self._data_of(token_id).startswith(b" ")
        return int(is_spaced and not self._decode([token_id]).startswith(" "))

    def _texts(self, token_id: int) -> tuple[str, bytes]:
        data = self._data_of(token_id)
        try:
            return data.decode(), data
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data
