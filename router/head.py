"""Read a text in views, and the linear head from their features to specialties and scope.

A page may hold one line that matters among many that do not. An average over the page loses that
line, so each piece of a long text is also read separately, and pieces in scope weigh most. A short
text has one view. The weighted mean is linear in the views' features, so evidence stays exact.

A view's features (D + S0 + 1,) are D directions of the encoder's pooled vector (principal
components, then the S0 specialties and the scope as the encoder learnt them), the S0 logits of the
n-gram specialties and the n-gram scope logit, each scaled to a similar size. The head sees nothing
else, so it can be fitted again without any text (router/training/extend.py). S specialties; S0 of
them are known to encoder and n-grams.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router.added_labels import AddedLabels
from router.encoder import Encoded, Floats, TextEncoder
from router.encoder import softmax as softmax_float32
from router.features import NgramModel, NgramScores
from router.text import Word, words_of

MAX_LOG_ODDS = 7.0  # bounds what a probability near 0 or 1 counts
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
class Projection:
    """Maps the output of encoder and n-grams to features."""

    mean: Floats  # (H,)
    components: Floats  # (H, D), scaled; the last is the scope
    ngram_scale: float

    def features(self, pooled: Floats, ngrams: NgramScores) -> Floats:
        """Return the features (D + S0 + 1,) of a pooled vector (H,) and n-gram scores."""
        return np.concatenate(
            [
                (pooled - self.mean) @ self.components,
                ngrams.specialty * self.ngram_scale,
                [ngrams.scope * self.ngram_scale],
            ]
        ).astype(np.float32)

    def relevance(self, features: Floats) -> Floats:
        """Return the weight of each view of a text before the softmax, (views,).

        It is the sum of the scope logits of encoder and n-grams, and of the lead of the first
        specialty over the second: a line about nothing medical has neither.

        Args:
            features: (views, D + S0 + 1).
        """
        end = self.components.shape[1] - 1  # of the encoder's specialties; then its scope
        num_known = features.shape[1] - end - 2
        scopes = features[:, end] + features[:, -1]
        known = features[:, end - num_known : end] + features[:, end + 1 : -1]
        ranked = np.sort(known, axis=1)
        lead = ranked[:, -1] - ranked[:, -2] if num_known > 1 else 0.0
        return np.asarray((scopes + lead) / self.ngram_scale)


@dataclass(frozen=True, slots=True)
class Head:
    """Linear models over the features, and their calibration.

    The probability of being in scope is Platt scaling (1999) over two inputs, the scope logit and
    the log-odds of the top specialty, which is a poor rule alone but improves the other.
    """

    specialty: Floats  # (D + S0 + 1, S)
    specialty_bias: Floats  # (S,)
    scope: Floats  # (D + S0 + 1,)
    scope_bias: float
    temperature: float  # divides the specialty logits (Guo et al. 2017)
    scope_scale: float
    scope_confidence: float
    scope_offset: float
    added: AddedLabels | None = None

    def logits(self, features: Floats) -> tuple[Floats, npt.NDArray[Any]]:
        """Return specialty logits (..., S) and scope logits (...) of features (..., D + S0 + 1)."""
        specialty = features @ self.specialty + self.specialty_bias
        if self.added is not None:
            self.added.put_logits(specialty, features, self.specialty, self.specialty_bias)
        return specialty, features @ self.scope + self.scope_bias

    def probabilities(self, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return calibrated probabilities (..., S) of specialty logits (..., S)."""
        known = self.known
        found = np.zeros(logits.shape)
        found[..., known] = softmax(logits[..., known] / self.temperature)
        if self.added is not None:
            claimed = self.added.claimed(logits)
            found *= 1 - claimed.sum(axis=-1, keepdims=True)
            found[..., list(self.added.columns)] = claimed
        return found

    @property
    def known(self) -> npt.NDArray[np.int64]:
        """Return the columns of the labels that the head was trained with."""
        later = self.added.columns if self.added is not None else ()
        return np.array([i for i in range(self.specialty.shape[1]) if i not in later])

    def direction(self, column: int) -> Floats:
        """Return what raises a label above the others, (D + S0 + 1,), in the features' space."""
        if self.added is not None and column in self.added.columns:
            return np.asarray(self.specialty[:, column] / self.added.spread)
        return np.asarray(self.specialty[:, column] - self.specialty[:, self.known].mean(axis=1))

    def in_scope(
        self, scope_logits: npt.NDArray[Any], probabilities: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Return calibrated probabilities (...) of being in scope; an added label's share is."""
        known = probabilities[..., self.known]
        total = known.sum(axis=-1) if self.added is not None else np.ones(known.shape[:-1])
        top = np.divide(known.max(axis=-1), total, out=np.ones_like(total), where=total > 0)
        found = sigmoid(
            self.scope_scale * scope_logits
            + self.scope_confidence * log_odds(top)
            + self.scope_offset
        )
        return np.asarray(1 - total * (1 - found)) if self.added is not None else found


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the softmax along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def log_odds(probability: npt.NDArray[Any] | float) -> npt.NDArray[Any]:
    """Return log(p / (1 - p)), bounded at MAX_LOG_ODDS."""
    bound = 1 / (1 + np.exp(MAX_LOG_ODDS))
    bounded = np.clip(probability, bound, 1 - bound)
    return np.asarray(np.log(bounded / (1 - bounded)))


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))))


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
        weights = softmax_float32(relevance)
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
