"""A text read in views: as a whole and, when it is long, piece by piece.

A page may hold one line that matters among many that do not. Averaged over the page that line is
lost, so each piece of a long text is read by itself too, and what is in scope weighs most. A short
text has one view. Everything here is linear in a view's features, so evidence stays exact.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router.encoder import Encoded, Floats, TextEncoder, softmax
from router.features import Word, words_of
from router.head import Projection
from router.ngrams import NgramModel, NgramScores

MIN_WORDS = 60  # of a text that is read in pieces too
PIECE_WORDS = 30  # at most, unless a sentence is longer
MAX_PIECES = 48  # of one text; a longer one is read in pieces spread evenly over it
_SENTENCE = re.compile(r"[^.!?;\n]*[.!?;\n]+\s*|[^.!?;\n]+$")


@dataclass(frozen=True, slots=True)
class View:
    """Characters `start` to `start + len(text)` of a text; `words` count from the view's start."""

    start: int
    text: str
    words: list[Word]
    encoded: Encoded
    ngrams: NgramScores


@dataclass(frozen=True, slots=True)
class Reading:
    """The first view is the whole text.

    Attributes:
        weights: (views,), not negative, sum 1.
        features: (W,) of the text: the weighted mean of its views' features.
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
) -> list[Reading]:
    """Texts that are clean (text.py) -> readings, in the order given; one run of the encoder."""
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
        weights = softmax(projection.relevance(features))
        readings.append(Reading(tuple(views), weights, weights @ features))
    return readings


def view_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each view, the whole text first."""
    whole = (0, len(text))
    if len(text.split(None, MIN_WORDS)) <= MIN_WORDS:
        return [whole]
    pieces: list[tuple[int, int]] = []
    num_words = 0
    for sentence in _SENTENCE.finditer(text):
        count = len(sentence.group().split())
        if pieces and num_words + count <= PIECE_WORDS:
            pieces[-1] = (pieces[-1][0], sentence.end())
            num_words += count
        else:
            pieces.append(sentence.span())
            num_words = count
    if len(pieces) > MAX_PIECES:
        spread = np.linspace(0, len(pieces) - 1, MAX_PIECES).round().astype(int)
        pieces = [pieces[i] for i in spread]
    return [whole, *pieces] if len(pieces) > 1 else [whole]
