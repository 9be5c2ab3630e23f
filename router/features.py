"""Text -> hashed n-gram features. The same code trains and serves; nothing of a text is kept.

Two blocks, each scaled to unit length: words (1- and 2-grams) and characters inside words (3- to
5-grams of the word with a blank on either side). Text is case-folded and stripped of accents, so
that "ECZEMA", "eczéma" and "eczema" are one. A feature's key is the CRC-32 of its UTF-8 bytes:
stable between runs, machines and Python versions.
"""

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

MAX_WORDS = 2000  # of one text; more carry no further signal and would cost time
MAX_WORD_CHARS = 40  # longer "words" are cut (base64, repeated letters)
CHAR_NGRAMS = (3, 4, 5)
_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text: its normal form, and where it stands in the original."""

    normal: str
    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """The words of `text` in order, at most MAX_WORDS, apostrophes splitting French articles."""
    found = []
    for match in _WORD.finditer(text):
        start = match.start()
        for part in re.split("(['\u2019])", match.group()):
            if part not in ("'", "\u2019") and part:
                found.append(Word(normalise(part), start, start + len(part)))
            start += len(part)
        if len(found) >= MAX_WORDS:
            return found[:MAX_WORDS]
    return found


def normalise(word: str) -> str:
    """Case-folded, compatibility-composed, without accents: "Œdème" -> "œdeme"."""
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def word_features(words: list[Word]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(key, positions of the words it comes from) of the word block."""
    for position, word in enumerate(words):
        yield _key(f"w:{word.normal}"), (position,)
        if position + 1 < len(words):
            following = words[position + 1].normal
            yield _key(f"w:{word.normal} {following}"), (position, position + 1)


def char_features(words: list[Word]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(key, position of the word) of the character block."""
    for position, word in enumerate(words):
        padded = f" {word.normal[:MAX_WORD_CHARS]} "
        for size in CHAR_NGRAMS:
            for start in range(len(padded) - size + 1):
                yield _key(f"c:{padded[start : start + size]}"), (position,)


def _key(feature: str) -> int:
    return zlib.crc32(feature.encode("utf-8", errors="replace"))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The features that were kept in training. `keys` ascend; `idf` belongs to them, (F,)."""

    keys: Keys
    idf: Floats

    def rows_of(self, keys: Iterable[int]) -> npt.NDArray[np.int64]:
        """Row of each key, or -1 where it was not kept."""
        wanted = np.fromiter(keys, dtype=np.uint32)
        if not len(self.keys):
            return np.full(len(wanted), -1, dtype=np.int64)
        rows = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[rows] == wanted, rows, -1).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Vector:
    """A text as features: row numbers (N,), values (N,), and which words each row comes from."""

    rows: npt.NDArray[np.int64]
    values: Floats
    origins: tuple[frozenset[int], ...]


def vectorise(words: list[Word], vocabulary: Vocabulary) -> Vector:
    """Sublinear term frequency times idf, each block of unit length (Salton and Buckley 1988)."""
    rows: list[int] = []
    values: list[Floats] = []
    origins: list[frozenset[int]] = []
    for block in (word_features(words), char_features(words)):
        counted: dict[int, tuple[int, set[int]]] = {}
        for key, positions in block:
            count, seen = counted.get(key, (0, set()))
            seen.update(positions)
            counted[key] = (count + 1, seen)
        found = vocabulary.rows_of(counted)
        known = found >= 0
        counts = np.fromiter((count for count, _ in counted.values()), dtype=np.float32)[known]
        weights = (1 + np.log(counts)) * vocabulary.idf[found[known]]
        length = float(np.linalg.norm(weights))
        rows += found[known].tolist()
        values.append(weights / length if length else weights)
        origins += [
            frozenset(seen)
            for (_, seen), kept in zip(counted.values(), known.tolist(), strict=True)
            if kept
        ]
    return Vector(
        np.array(rows, dtype=np.int64), np.concatenate(values).astype(np.float32), tuple(origins)
    )
