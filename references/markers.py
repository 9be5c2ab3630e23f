"""The text of an answer as it is written: each sentence that a passage supports gets its marker."""

import re
from collections.abc import Sequence

from references.passage import Passage
from references.support import MARKER, Support, SupportCheck
from references.words import guess_language, sentences

# What may yet belong to the sentence before it, or begin the next one.
_OPEN_END = re.compile(r"(?:[\"'\u00ab(]|\[\d{0,4}\]?)$")
_MAX_OPEN = 8
_WITH_BLANKS = re.compile(r"\s*\[\d+\]")


class MarkedText:
    """An answer whose sentences are checked as they are complete.

    A sentence that a passage supports ends in that passage's marker, such as [1], unless it has
    just this one already. Every other marker is left out, so one that stands in the text was
    checked. The text is the same in whatever pieces it comes.

    Attributes:
        text: all that was returned.
        support: of the complete sentences that state something, by their place in `text`.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._check = SupportCheck(passages)
        self._complete = ""  # sentences, as they were written
        self._open = ""  # the one that is not complete
        self._num_shown = 0  # characters of `_open` in `text`; none from its first marker on
        self.text = ""
        self.support: list[Support] = []

    def add(self, piece: str) -> str:
        """Return the text that may be shown now that `piece` was written."""
        size = len(self.text)
        self._open += piece
        while len(spans := sentences(self._open[: _decided(self._open)])) > 1:
            self._close(*spans[0])
        marker = MARKER.search(self._open)
        self._show(_decided(self._open[: marker.start()] if marker else self._open))
        return self.text[size:]

    def end(self) -> str:
        """Return the rest of the text, which ends here."""
        size = len(self.text)
        while spans := sentences(self._open):
            self._close(*spans[0])
        self._show(len(self._open))
        return self.text[size:]

    def _show(self, end: int) -> None:
        self.text += self._open[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)

    def _close(self, start: int, end: int) -> None:
        sentence = self._open[start:end]
        self._complete += self._open[:end]
        found = self._check.of(sentence, guess_language(self._complete))
        marked = _marked(sentence, found[0] if found else None)
        start_in_text = len(self.text) - self._num_shown + start
        self._show(start)
        self.text = self.text[:start_in_text] + marked
        if found:
            self.support.append(Support(start_in_text, len(self.text), *found))
        self._open, self._num_shown = self._open[end:], 0


def _decided(text: str) -> int:
    """Return where the end of a text begins that the next characters may give another sense."""
    end = len(text.rstrip())
    for _ in range(_MAX_OPEN):
        if not (found := _OPEN_END.search(text, max(0, end - 6), end)):
            break
        end = len(text[: found.start()].rstrip())
    return end


def _marked(sentence: str, citation: int | None) -> str:
    """Return the sentence with the marker of its citation, and without any other."""
    if [int(n) for n in MARKER.findall(sentence)] == ([citation] if citation else []):
        return sentence
    bare = _WITH_BLANKS.sub("", sentence).strip()
    return f"{bare} [{citation}]" if citation else bare
