"""End an answer that goes round in circles: before it says the same words a third time."""

import re
from collections import Counter

TIMES = 3
_WORD = re.compile(r"\s*\S+(?=\s)")


def without_loop(text: str, num_words: int) -> str:
    """Return `text` up to where an answer would have ended."""
    stop = LoopStop(num_words)
    return stop.extend(text) + stop.finish()


class LoopStop:
    """Pass an answer's text on as it arrives, and stop before a third repetition.

    A repetition is the same `num_words` words, whatever their case, anywhere in the answer. Words
    that may be the start of a third one are held back, so that a stream ends where a whole answer
    does. An answer that repeats nothing passes at once.

    Args:
        num_words: 0 passes everything.
    """

    def __init__(self, num_words: int) -> None:
        self._num_words = num_words
        self._words: list[str] = []  # complete ones, in small letters
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._starts: set[tuple[str, ...]] = set()  # of what was said TIMES - 1 times
        self._held: list[str] = []  # complete words that were not passed on, with their spaces
        self._rest = ""  # what comes after the last complete word and was not passed on
        self._open = ""  # the part of an incomplete word that was passed on already
        self.is_looping = False

    def extend(self, text: str) -> str:
        """Return what may be said of the text so far."""
        if not self._num_words or self.is_looping:
            return "" if self.is_looping else text
        self._rest += text
        said = ""
        while match := _WORD.match(self._open + self._rest):
            whole = match.group()
            new = whole[len(self._open) :]
            self._rest = self._rest[len(new) :]
            self._open = ""
            said += self._take(new, whole)
            if self.is_looping:
                return said
        if not self._starts:  # nothing was repeated: no word needs to wait for its end
            said += self._rest
            self._open, self._rest = self._open + self._rest, ""
        return said

    def finish(self) -> str:
        """End the answer, and return what was held back."""
        if not self._num_words or self.is_looping:
            return ""
        said, tail = "", self._rest
        if (self._open + tail).strip():
            said = self._take(tail, self._open + tail)
            tail = ""
        if self.is_looping:
            return said
        return said + "".join(self._held) + tail

    def _take(self, new: str, whole: str) -> str:
        """Count a complete word, of which `new` was not passed on; return what may be said."""
        was_free = not self._starts  # so a stream has said its beginning already
        self._words.append(whole.strip().lower())
        self._held.append(new)
        gram = tuple(self._words[-self._num_words :])
        if len(gram) == self._num_words:
            self._counts[gram] += 1
            if self._counts[gram] == TIMES - 1:
                self._starts |= {gram[:k] for k in range(1, self._num_words + 1)}
            if self._counts[gram] == TIMES:
                self.is_looping = True
                said = self._held[: max(len(self._held) - self._num_words, 0)]
                self._held = []
                return "".join(said)
        keep = 0 if was_free else self._num_to_hold()
        split = max(len(self._held) - keep, 0)
        said, self._held = self._held[:split], self._held[split:]
        return "".join(said)

    def _num_to_hold(self) -> int:
        """Return how many of the last words begin something that was said TIMES - 1 times."""
        for length in range(min(self._num_words - 1, len(self._words)), 0, -1):
            if tuple(self._words[-length:]) in self._starts:
                return length
        return 0
