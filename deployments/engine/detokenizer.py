"""Decode token ids to text a piece at a time, and find stop strings.

A byte-level tokenizer may spread one character over several tokens, and a SentencePiece one adds
or drops a space depending on what comes before. So each step decodes a short window twice, with
and without the new tokens, and returns the difference; text that ends in an unfinished character
is held back (the approach of text-generation-inference and vLLM).
"""

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class IncrementalDetokenizer:
    """Decode one answer as its tokens arrive."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._token_ids: list[int] = []
        self._window_start = 0  # first token of the decoding window
        self._window_read = 0  # tokens of the window whose text has been returned
        self._held = ""  # decoded, but possibly the start of a stop string
        self.is_stopped = False  # a stop string was found; the text ends before it

    def extend(self, token_ids: Sequence[int]) -> str:
        """Add tokens, decoded together, and return the text that is now certain."""
        self._token_ids.extend(token_ids)
        return self._release(self._advance(final=False))

    def finish(self) -> str:
        """End the answer and return what was held back."""
        if self.is_stopped:
            return ""
        text = self._release(self._advance(final=True))
        if self.is_stopped:
            return text
        rest, self._held = self._held, ""
        return text + rest

    def _advance(self, *, final: bool) -> str:
        window = self._token_ids[self._window_start :]
        num_read = self._window_read - self._window_start
        before = self._decode(window[:num_read])
        after = self._decode(window)
        if after.endswith(_UNFINISHED) and not final:
            return ""
        self._window_start = self._window_read
        self._window_read = len(self._token_ids)
        return after[len(before) :]

    def _release(self, text: str) -> str:
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            released, self._held = self._held[: min(found)], ""
            return released
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        split = len(self._held) - keep
        released, self._held = self._held[:split], self._held[split:]
        return released


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
