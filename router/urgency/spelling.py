"""Correct misspelled words to those that the red flags know: one letter wrong, missing or too many.

The vocabulary is indexed by its words with one letter left out (SymSpell's deletes), so that a
look-up costs as many dictionary accesses as the word has letters.
"""

from collections.abc import Collection, Iterator

MIN_LETTERS = 5  # shorter words are one letter away from too many others
MIN_STEM = 6  # of a beginning, after which anything may follow


class Speller:
    """
    Args:
        words: the vocabulary.
        stems: beginnings of words of the vocabulary.
        keep: real words that are one letter away from the vocabulary, and are meant.
    """

    def __init__(
        self, words: Collection[str], stems: Collection[str], keep: Collection[str]
    ) -> None:
        self._known = frozenset(words) | frozenset(keep)
        self._stems = tuple(stems)
        self._words_by_part = _index(words)
        long_stems = [stem for stem in stems if len(stem) >= MIN_STEM]
        self._stems_by_part = _index(long_stems)
        self._stem_lengths = sorted({len(stem) for stem in long_stems})

    def corrected(self, word: str) -> str:
        """Return the word of the vocabulary that is meant, or `word`."""
        if len(word) < MIN_LETTERS or word in self._known or not word.isalpha():
            return word
        if word.startswith(self._stems):
            return word
        meant = _lookup(self._words_by_part, word)
        if meant:
            return meant
        for length in self._stem_lengths:
            for cut in (length - 1, length, length + 1):
                if MIN_LETTERS <= cut <= len(word):
                    meant = _lookup(self._stems_by_part, word[:cut], length)
                    if meant:
                        return meant
        return word


def _index(words: Collection[str]) -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for word in sorted(words):
        if len(word) >= MIN_LETTERS and word.isalpha():
            for part in {word, *_one_left_out(word)}:
                index.setdefault(part, []).append(word)
    return index


def _one_left_out(word: str) -> Iterator[str]:
    return (word[:i] + word[i + 1 :] for i in range(len(word)))


def _lookup(index: dict[str, list[str]], word: str, length: int | None = None) -> str | None:
    for part in (word, *_one_left_out(word)):
        for known in index.get(part, ()):
            if length in (None, len(known)) and _is_one_off(word, known):
                return known
    return None


def _is_one_off(word: str, known: str) -> bool:
    """Whether the two differ by one letter or two swapped ones, the first letter being right."""
    if word[0] != known[0]:
        return False
    if len(word) != len(known):
        longer, shorter = sorted((word, known), key=len, reverse=True)
        return len(longer) == len(shorter) + 1 and shorter in _one_left_out(longer)
    wrong = [i for i in range(len(word)) if word[i] != known[i]]
    if len(wrong) == 2:
        i, j = wrong
        return j == i + 1 and word[i] == known[j] and word[j] == known[i]
    return len(wrong) == 1
