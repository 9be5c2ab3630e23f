"""Read a text in views: as a whole and, when it is long, also piece by piece.

A page may hold one line that matters among many that do not. An average over the page loses that
line, so each piece of a long text is also read separately, and pieces in scope weigh most. A short
text has one view. The weighted mean is linear in the views' features, so evidence stays exact.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from router.encoder import Encoded, Floats, TextEncoder, softmax
from router.features import NgramModel, NgramScores, Word, words_of
from router.head import Projection

MIN_WORDS = 150  # a text with more is also read in pieces
PIECE_WORDS = 12  # at most, unless a sentence is longer
# Added to the whole text's relevance: where all of it is in scope, as in a case report, the whole
# tells more than the piece with the strongest words.
WHOLE_BONUS = 4.0
RUN_ON_WORDS = 60  # a "sentence" with more lacks punctuation, so it is cut
MAX_PIECES = 40  # of one text; those of a longer one are evenly spread over it
_SENTENCE = re.compile(r"[^.!?;\n]*[.!?;\n]+\s*|[^.!?;\n]+$")
_FEW_WORDS = re.compile(rf"(?:\s*\S+){{1,{2 * PIECE_WORDS}}}\s*|\s+$")


@dataclass(frozen=True, slots=True)
class View:
    """The characters from `start` on of a text; `words` are positioned within the view."""

    start: int
    text: str
    words: list[Word]
    encoded: Encoded
    ngrams: NgramScores


@dataclass(frozen=True, slots=True)
class TextViews:
    """The views of one text, the whole text first.

    Attributes:
        weights: (views,), not negative, sum 1.
        features: (D + S0 + 1,), the weighted mean of the views' features.
    """

    views: tuple[View, ...]
    weights: Floats
    features: Floats

    @property
    def whole(self) -> View:
        return self.views[0]

    @property
    def strongest(self) -> View:
        return self.views[int(np.argmax(self.weights))]


def read(
    texts: Sequence[str], encoder: TextEncoder, ngrams: NgramModel, projection: Projection
) -> list[TextViews]:
    """Read clean texts (text.py) with one run of the encoder."""
    spans = [view_spans(text) for text in texts]
    pieces = [text[a:b] for text, found in zip(texts, spans, strict=True) for a, b in found]
    encoded = iter(encoder.encode(pieces))
    readings = []
    for text, found in zip(texts, spans, strict=True):
        views = []
        for start, end in found:
            words = words_of(text[start:end])
            views.append(View(start, text[start:end], words, next(encoded), ngrams.score(words)))
        features = np.stack([projection.features(v.encoded.pooled, v.ngrams) for v in views])
        relevance = projection.relevance(features)
        relevance[0] += WHOLE_BONUS
        weights = softmax(relevance)
        readings.append(TextViews(tuple(views), weights, weights @ features))
    return readings


def view_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each view, the whole text first."""
    whole = (0, len(text))
    if len(text.split(None, MIN_WORDS)) <= MIN_WORDS:
        return [whole]
    pieces: list[tuple[int, int]] = []
    num_words = 0
    for start, end in _sentences(text):
        count = len(text[start:end].split())
        if pieces and num_words + count <= PIECE_WORDS:
            pieces[-1] = (pieces[-1][0], end)
            num_words += count
        else:
            pieces.append((start, end))
            num_words = count
    if len(pieces) > MAX_PIECES:
        spread = np.linspace(0, len(pieces) - 1, MAX_PIECES).round().astype(int)
        pieces = [pieces[i] for i in spread]
    return [whole, *pieces] if len(pieces) > 1 else [whole]


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each sentence; a run-on one is cut every 2 * PIECE_WORDS words."""
    for sentence in _SENTENCE.finditer(text):
        start, end = sentence.span()
        if len(text[start:end].split(None, RUN_ON_WORDS)) <= RUN_ON_WORDS:
            yield start, end
        else:
            yield from (piece.span() for piece in _FEW_WORDS.finditer(text, start, end))
