"""Hash the n-grams of a text into features. The same code trains and serves.

Two blocks, each scaled to unit length: words (1- and 2-grams) and characters inside words (3- to
5-grams of the word with a blank on either side). Text is case-folded and stripped of accents, so
that "ECZEMA", "eczéma" and "eczema" are equal. A feature's key is the CRC-32 of its UTF-8 bytes:
the same in all runs, machines and Python versions. Shapes: F features.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.text import Word

Keys = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

MAX_WORD_CHARS = 40  # longer "words" are cut (base64, repeated letters)
CHAR_NGRAMS = (3, 4, 5)


def word_features(words: list[Word]) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Yield (key, count, positions of its words) of the word block."""
    for position, word in enumerate(words):
        yield _key(f"w:{word.normal}"), 1, (position,)
        if position + 1 < len(words):
            following = words[position + 1].normal
            yield _key(f"w:{word.normal} {following}"), 1, (position, position + 1)


def char_features(words: list[Word]) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Yield (key, count, positions of its word) of the character block.

    A repeated word is cut up once: a long page repeats most of its words.
    """
    places: dict[str, list[int]] = {}
    for position, word in enumerate(words):
        places.setdefault(word.normal[:MAX_WORD_CHARS], []).append(position)
    for normal, positions in places.items():
        padded = f" {normal} "
        for size in CHAR_NGRAMS:
            for start in range(len(padded) - size + 1):
                yield _key(f"c:{padded[start : start + size]}"), len(positions), positions


def _key(feature: str) -> int:
    return zlib.crc32(feature.encode("utf-8", errors="replace"))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The features that were kept in training: `keys` (F,) ascend, `idf` (F,) belongs to them."""

    keys: Keys
    idf: Floats

    def rows_of(self, keys: Iterable[int]) -> npt.NDArray[np.int64]:
        """Return the row of each key, or -1 where it was not kept."""
        wanted = np.fromiter(keys, dtype=np.uint32)
        if not len(self.keys):
            return np.full(len(wanted), -1, dtype=np.int64)
        rows = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[rows] == wanted, rows, -1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Vector:
    """A text as N features: `rows` (N,), `values` (N,), and the words that each row comes from.

    Row i comes from the words at `origins[starts[i] : starts[i + 1]]`; `starts` is (N + 1,).
    """

    rows: npt.NDArray[np.int64]
    values: Floats
    origins: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


def vectorise(words: list[Word], vocabulary: Vocabulary) -> Vector:
    """Weight features by sublinear term frequency times idf (Salton and Buckley 1988).

    Each block has unit length.
    """
    rows: list[int] = []
    values: list[Floats] = []
    origins: list[int] = []
    lengths: list[int] = [0]
    for block in (word_features(words), char_features(words)):
        counted: dict[int, int] = {}
        seen: dict[int, list[int]] = {}
        for key, count, positions in block:
            counted[key] = counted.get(key, 0) + count
            seen.setdefault(key, []).extend(positions)
        found = vocabulary.rows_of(counted)
        known = found >= 0
        counts = np.fromiter(counted.values(), dtype=np.float32)[known]
        weights = (1 + np.log(counts)) * vocabulary.idf[found[known]]
        length = float(np.linalg.norm(weights))
        rows += found[known].tolist()
        values.append(weights / length if length else weights)
        for places, is_kept in zip(seen.values(), known.tolist(), strict=True):
            if is_kept:
                origins += places
                lengths.append(len(places))
    return Vector(
        rows=np.array(rows, dtype=np.int64),
        values=np.concatenate(values).astype(np.float32),
        origins=np.array(origins, dtype=np.int64),
        starts=np.cumsum(lengths, dtype=np.int64),
    )


@dataclass(frozen=True, slots=True)
class NgramScores:
    """The logits of one text: of the specialties (S,), of being in scope, of being French."""

    vector: Vector
    specialty: Floats
    scope: float
    french: float


@dataclass(frozen=True, slots=True)
class NgramModel:
    """Linear models over n-grams, for S specialties, scope and language.

    They never change, so any number of threads may use them.
    """

    vocabulary: Vocabulary
    specialty: Floats  # (F, S)
    specialty_bias: Floats  # (S,)
    scope: Floats  # (F,)
    scope_bias: float
    french: Floats  # (F,)
    french_bias: float

    def score(self, words: list[Word]) -> NgramScores:
        vector = vectorise(words, self.vocabulary)
        rows, values = vector.rows, vector.values
        return NgramScores(
            vector=vector,
            specialty=values @ self.specialty[rows] + self.specialty_bias,
            scope=float(values @ self.scope[rows] + self.scope_bias),
            french=float(values @ self.french[rows] + self.french_bias),
        )

    def by_word(self, vector: Vector, direction: Floats, num_words: int) -> npt.NDArray[np.float64]:
        """Return how much each word adds to `direction @ specialty logits`, (words,).

        A feature's share is divided equally among the words that it comes from.

        Args:
            direction: (S,).
        """
        gain = vector.values * (self.specialty[vector.rows] @ direction)
        lengths = np.diff(vector.starts)
        shares = np.repeat(gain / lengths, lengths)
        return np.bincount(vector.origins, shares, minlength=num_words).astype(np.float64)
