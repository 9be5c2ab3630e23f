"""Naive Bayes evidence of words: how much likelier a word is in a specialty's texts than in others.

A case names many findings, each of which says little alone. Models that are fitted to short
questions give such words too little weight; log ratios of single words, counted, add up. Words are
cut to PREFIX letters: forms of a word, and many words of both languages ("hemoptysis",
"hémoptysie"), then share an entry. Shapes: V entries, S specialties, W words of a text.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.text import Word

Keys = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

PREFIX = 6  # letters


@dataclass(frozen=True, slots=True)
class NaiveBayes:
    """The log ratios `weights` (V, S) of the entries `keys` (V,), which ascend."""

    keys: Keys
    weights: Floats

    def score(self, words: Sequence[Word]) -> Floats:
        """Return the sum over a text's different entries, (S,), divided by their number's root."""
        rows, _, scale = self._entries(words)
        return np.asarray(self.weights[rows[rows >= 0]].sum(axis=0) * scale, dtype=np.float32)

    def by_word(self, words: Sequence[Word], direction: Floats) -> npt.NDArray[np.float64]:
        """Return how much each word adds to `direction @ score`, (W,).

        The share of an entry is divided equally among its words.

        Args:
            direction: (S,).
        """
        rows, entry_of, scale = self._entries(words)
        gain = np.where(rows >= 0, self.weights[rows] @ direction, 0.0) * scale
        shares = (gain / np.bincount(entry_of, minlength=len(rows)))[entry_of]
        return shares.astype(np.float64)

    def _entries(
        self, words: Sequence[Word]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], float]:
        """Return the row of each different entry, -1 if unknown; each word's entry; the scale."""
        numbers: dict[str, int] = {}
        entry_of = [numbers.setdefault(entry(word), len(numbers)) for word in words]
        rows = rows_in(self.keys, map(key_of, numbers))
        return rows, np.array(entry_of, dtype=np.int64), float(1 / np.sqrt(1 + len(numbers)))


def entry(word: Word) -> str:
    """Return the beginning of a word that is looked up."""
    return word.normal[:PREFIX]


def key_of(text: str) -> int:
    """Return the key of an entry: the CRC-32 of its UTF-8 bytes."""
    return zlib.crc32(text.encode("utf-8", errors="replace"))


def rows_in(kept: Keys, keys: Iterable[int]) -> npt.NDArray[np.int64]:
    """Return the row of each key in `kept`, which ascends, or -1 where it is not in it."""
    wanted = np.fromiter(keys, dtype=np.uint32)
    if not len(kept):
        return np.full(len(wanted), -1, dtype=np.int64)
    rows = np.searchsorted(kept, wanted).clip(max=len(kept) - 1)
    return np.where(kept[rows] == wanted, rows, -1).astype(np.int64)
