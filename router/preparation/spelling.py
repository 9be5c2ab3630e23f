"""Correct misspelt words to those of a vocabulary: the router's clinical words, or red flags.

A word that is not known is compared with the vocabulary by the optimal string alignment distance
(Damerau 1964) of the words and of their sound: letters that French and English write differently
for one sound are made equal ("exzema", "eczema": "eksema"). Names are left alone.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cache, lru_cache

from rapidfuzz.distance import OSA
from rapidfuzz.process import extract

from router.preparation.abbreviations import is_shouted
from router.preparation.edited import Edit, EditedText
from router.text import Word, words_of
from router.words import words

MIN_LETTERS = 5
MIN_LETTERS_OF_TWO = 8  # of a word with two slips
MAX_SOUND_ALIKE = 3  # slips in a word that sounds the same
MAX_WORDS = 24  # looked up in one text: bounds the time
CACHE = 20_000
_SOUNDS: tuple[tuple[str, str], ...] = (
    ("œ|oe|æ|ae", "e"),
    ("^ps", "s"),
    ("^pn", "n"),
    ("sthm|stm", "sm"),
    ("ph", "f"),
    ("cz|cc(?=[eiy])|xz|xc(?=[ei])|x", "ks"),
    ("qu?|ck", "k"),
    ("sc(?=[eiy])|c(?=[eiy])|z", "s"),
    ("c", "k"),
    ("(?<!s)h", ""),
    ("ti(?=on)", "si"),
    ("y", "i"),
    ("ai|ei", "e"),
    ("eau|au", "o"),
    ("ee|ea", "e"),
    (r"(.)\1+", r"\1"),
    ("(?<=...)(?:es|e|s)$", ""),
)
_SOUND_PATTERNS = tuple((re.compile(pattern), sound) for pattern, sound in _SOUNDS)
_ENDING = re.compile("(?:es|e|s|a)$")
_TITLE = frozenset("mr mrs ms miss dr prof mme mlle m monsieur madame docteur doctor".split())


@cache
def clinical_speller() -> "Speller":
    """Return the speller of the clinical words of the router's own texts (words.txt.gz)."""
    return Speller(words().clinical, words().known)


def _stem(normal: str) -> str:
    return _ENDING.sub("", normal)


def sound(normal: str) -> str:
    """Return how a word in normal form sounds, roughly: the same for its usual misspellings."""
    for pattern, replacement in _SOUND_PATTERNS:
        normal = pattern.sub(replacement, normal)
    return normal


def correct(text: EditedText) -> EditedText:
    """Return the text with misspelt clinical words corrected."""
    found_words = words_of(text.text)
    known, shouted = words().known, is_shouted(text.text)
    edits, num_looked_up = [], 0
    for position, word in enumerate(found_words):
        if word.normal in known or not _may_be_misspelt(word, text.text):
            continue
        num_looked_up += 1
        if num_looked_up > MAX_WORDS:
            break
        is_name = not shouted and _looks_like_a_name(text.text, found_words, position)
        found = clinical_speller().correction(word.normal, is_name=is_name)
        if found is not None:
            edits.append(Edit(word.start, word.end, found))
    return text.apply(edits)


def _may_be_misspelt(word: Word, text: str) -> bool:
    written = text[word.start : word.end]
    return len(word.normal) >= MIN_LETTERS - 1 and written.isalpha()


def _looks_like_a_name(text: str, found: Sequence[Word], position: int) -> bool:
    """Return whether a word begins with a capital inside a sentence, or follows a title."""
    word = found[position]
    if position and found[position - 1].normal in _TITLE:
        return True
    before = text[: word.start].rstrip()
    return text[word.start].isupper() and bool(before) and before[-1] not in ".!?:\n"


class Speller:
    """Never changes once built, so any number of threads may use it.

    Args:
        vocabulary: word in normal form -> as it is written, the most frequent first.
        known: words in normal form that are right as they are, with any ending.
    """

    def __init__(self, vocabulary: Mapping[str, str], known: Collection[str]) -> None:
        self._written = dict(vocabulary)
        self._ranks = {normal: rank for rank, normal in enumerate(vocabulary)}
        self._known_stems = frozenset(map(_stem, known))
        self._by_length: dict[int, list[str]] = defaultdict(list)
        self._by_sound: dict[str, list[str]] = defaultdict(list)
        for normal in vocabulary:
            self._by_length[len(normal)].append(normal)
            self._by_sound[sound(normal)].append(normal)
        self._cached = lru_cache(maxsize=CACHE)(self._correction)

    def correction(self, normal: str, *, is_name: bool = False) -> str | None:
        """Return the word that an unknown one was meant to be, or None.

        Args:
            normal: in normal form.
            is_name: it may be a name, so only a word that sounds the same is taken.
        """
        return self._cached(normal, is_name)

    def _correction(self, normal: str, is_name: bool) -> str | None:
        if _stem(normal) in self._known_stems:  # another ending of a known word
            return None
        heard = sound(normal)
        candidates = {
            word: OSA.distance(normal, word)
            for word in self._by_sound.get(heard, ())
            if OSA.distance(normal, word) <= min(MAX_SOUND_ALIKE, len(normal) // 2)
        }
        if not candidates and not is_name and len(normal) >= MIN_LETTERS:
            candidates = self._near(normal, heard)
        if not candidates:
            return None
        best = min(candidates, key=lambda word: (candidates[word], self._ranks[word]))
        return self._written[best]

    def _near(self, normal: str, heard: str) -> dict[str, int]:
        """Return words one slip away, or two slips of which at most one is heard."""
        size = len(normal)
        most = 2 if size >= MIN_LETTERS_OF_TWO else 1
        lengths = range(size - most, size + most + 1)
        listed = [word for length in lengths for word in self._by_length.get(length, ())]
        found = extract(normal, listed, scorer=OSA.distance, score_cutoff=most, limit=None)
        return {
            word: distance + OSA.distance(heard, sound(word))
            for word, distance, _ in found
            if word[0] == normal[0]
            and len(word) >= MIN_LETTERS
            and (distance == 1 or OSA.distance(heard, sound(word)) <= 1)
            # Of few letters another one is another word.
            and (size > MIN_LETTERS or len(word) != size)
        }
