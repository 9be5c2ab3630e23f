"""How urgent a text is worded: a linear model over hashed n-grams, beside the rules.

The rules know signs by their names; people word them in more ways than a list can hold. The model
weighs words, pairs of words, and the letters inside them; it was fitted by
`python -m scripts.train_red_flags` and has no dictionary, so its weights hold no text.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from router.features import char_features, word_features
from router.preparation.reading import Reading
from router.text import Word

WEIGHTS = Path(__file__).with_name("wording.safetensors")
NUM_BUCKETS = 1 << 15
# The squared length of a block of features (words, letters) of a question of usual length: shorter
# texts are not stretched to the same length, for they tell less.
USUAL_SQUARED_LENGTH = (25.0, 108.0)
PIECE_WORDS = 40  # a longer text is read in pieces that end with a sentence
# Log-odds from which a text is urgent: without a sign of the rules, and with a single one. Chosen
# by what models that had not seen a question say of it (docs/red_flags.md).
URGENT_FROM = 0.5
SIGN_FROM = URGENT_FROM - 1.8
# Of poison taken and of the wish to die people tell calmly ("I feel fine"), and waiting is worst.
CALM_SIGN_FROM = URGENT_FROM - 4.3
# A text of several pieces has more chances, and tells more of a case than the model was fitted on:
# it needs more without a sign, and with one its wording is not asked.
LONG_URGENT_FROM = URGENT_FROM + 1.7
_HOT = (38, 43)  # a number that may be a fever in degrees Celsius
Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Wording:
    """The fitted model: `weights` (NUM_BUCKETS,) and `bias`. It never changes."""

    def __init__(self, weights: Floats, bias: float) -> None:
        self._weights = weights
        self._bias = bias

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "Wording":
        """Read a model file: 8-bit weights, their scale, and the bias."""
        held = load_file(path)
        return cls(held["weights"].astype(np.float32) * held["scale"], float(held["bias"][0]))

    def is_urgent(self, reading: Reading, urgent_from: float) -> bool:
        """Return whether a text is worded urgently: a short one at log-odds of `urgent_from`.

        A long one is with any sign, which is a lower `urgent_from` than URGENT_FROM.
        """
        odds = self.log_odds(reading)
        if len(odds) > 1:
            return urgent_from < URGENT_FROM or max(odds) >= LONG_URGENT_FROM
        return bool(odds) and odds[0] >= urgent_from

    def log_odds(self, reading: Reading) -> list[float]:
        """Return the log-odds that each piece of a text is urgent."""
        return [
            float(values @ self._weights[rows]) + self._bias
            for rows, values in map(features, pieces(reading))
        ]


def pieces(reading: Reading) -> Iterator[list[str]]:
    """Yield the words of a text, cut where a sentence ends after PIECE_WORDS; its ends are marked.

    A number becomes the count of its digits, or "#hot": "38.4" and "39.1" mean the same. A text
    without a word has no piece.
    """
    if not any(word.isalpha() for word in reading.words):
        return
    piece = ["^"]
    for at, word in enumerate(reading.words):
        is_new = at and reading.sentences[at] != reading.sentences[at - 1]
        if is_new and len(piece) > PIECE_WORDS:
            yield [*piece, _end(reading, at - 1)]
            piece = ["^"]
        piece.append(_kind_of(word) if word[0].isdecimal() else word)
    if len(piece) > 1:
        yield [*piece, _end(reading, len(reading.words) - 1)]


def _kind_of(number: str) -> str:
    whole = number.replace(",", ".").split(".")[0]
    return "#hot" if _HOT[0] <= int(whole) < _HOT[1] else f"#{len(whole)}"


def _end(reading: Reading, at: int) -> str:
    return "?" if reading.sentences[at] in reading.questions else "$"


def features(words: list[str]) -> tuple[Rows, Floats]:
    """Return the buckets of a piece's n-grams, and their values.

    A value is 1 + log(count); the values of words, and of letters, are then scaled to at most the
    length 1.4.
    """
    listed = [Word(word, 0, 0) for word in words]
    rows: list[int] = []
    values: list[Floats] = []
    for block, usual in zip(
        (word_features(listed), char_features(listed)), USUAL_SQUARED_LENGTH, strict=True
    ):
        counts: dict[int, int] = {}
        for key, count, _ in block:
            bucket = key % NUM_BUCKETS
            counts[bucket] = counts.get(bucket, 0) + count
        weights = 1 + np.log(np.fromiter(counts.values(), dtype=np.float32))
        rows += counts
        values.append(weights * np.sqrt(2 / (weights @ weights + usual)))
    return np.array(rows, dtype=np.int64), np.concatenate(values).astype(np.float32)
