"""A question as groups of words that mean the same, each with the weight of its rarity.

English words bring the clinical word for an everyday one (glossary.yaml); French words become
English ones by the glossary, or by their skeleton among the shelf's words (cognates.py), and stay
as they are besides: most names of diseases are the same.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations
from pathlib import Path
from typing import Protocol

from references.cognates import skeleton
from references.compounds import compounds
from references.words import (
    ASPECTS,
    ENGLISH,
    FRENCH,
    SIGN_ASPECTS,
    french,
    function_words,
    root,
    stem,
    words,
)

GLOSSARY = Path(__file__).with_name("glossary.yaml")
MAX_WORDS = 60  # of a question: the first ones with content
MAX_PHRASE = 4  # words of a glossary's entry
WINDOW = 5  # words, in which those of an entry stand
MIN_MENDED, MIN_MENDED_TWICE = 6, 12  # letters of a misspelt word: for one slip, for two
MIN_SHARED = 4  # letters of a French stem that English may share: "gal" of "gale" is another word
GLOSS = 0.9  # how much a word found through the glossary or a cognate counts
_LINKING = frozenset("no not up out of on to lui meme pas plus trop un seul without sans".split())
_VERB_ENDING = re.compile("(?:issent|aient|ait|ais|ent|ons|ant|ees?|er|es?|ez|ir|it)$")
_MEANING = tuple[tuple[str, ...], ...]  # alternatives, each of some words


class Vocabulary(Protocol):
    """What a query needs to know of a shelf."""

    @property
    def num_passages(self) -> int: ...

    def counts(self, wanted: Sequence[str]) -> Mapping[str, int]: ...

    def words(self) -> Set[str]: ...

    def cognates(self, skeletons: Sequence[str]) -> list[tuple[str, str]]: ...


@dataclass(frozen=True, slots=True)
class Group:
    """Stems that stand for one word of the question, or for a phrase.

    Attributes:
        stems: stem -> how well it stands for the word, up to 1; those of a meaning of two words
            add up.
        count: in how many passages they are, at most.
        weight: inverse document frequency: log of all passages over those with one of the stems.
        extra: the group adds to the ranking, and nothing is missing where it is not found.
    """

    stems: Mapping[str, float]
    count: int
    weight: float
    extra: bool = False

    def held_by(self, stems: frozenset[str]) -> float:
        """Return how much of the group is among `stems`, 0 to 1."""
        best = total = 0.0
        for s, value in self.stems.items():
            if s in stems:
                best, total = max(best, value), total + value
        return max(best, min(GLOSS, total))


@dataclass(frozen=True, slots=True)
class Query:
    """A question.

    Attributes:
        stems: of all groups.
        weight: of all groups that are not extra.
        english: its content in English words, for a vectoriser.
    """

    groups: tuple[Group, ...]
    stems: frozenset[str]
    weight: float
    wants_signs: bool
    english: str


def read_query(question: str, language: str, vocabulary: Vocabulary) -> Query:
    """Return the question's groups: first those of its words, in order, then its phrases."""
    empty = function_words(question, language)
    found = words(question)[: 4 * MAX_WORDS]
    kept = [word for word in found if word not in empty or word in _LINKING]
    meanings, inside = _phrases(kept, language)
    content = [word for word in kept if word not in empty][:MAX_WORDS]
    translated = _translations(content, language, vocabulary)
    mended = _mended([word for word in content if not translated[word]], language, vocabulary)
    translated |= _translations(list(mended.values()), language, vocabulary)
    drafts: list[tuple[dict[str, float], bool]] = []
    english: list[str] = []
    for word in content:
        said, word = word, mended.get(word, word)
        own = dict.fromkeys((stem(word), *_forms(word, language)), 1.0)
        drafts.append((_weighed(translated[word]) | own, said in ASPECTS or said in inside))
        if word not in inside or language == "en":
            english += [part for way in translated[word][:2] for part in way]
            english += [word] if language == "en" or not translated[word] else []
    for meaning in meanings:
        drafts.append((_weighed(meaning), False))
        english += [part for way in meaning[:2] for part in way]
    if made := sorted(vocabulary.words() & set(compounds(question, language))):
        drafts.append((dict.fromkeys(map(stem, made), GLOSS), True))
        english += made
    counts = vocabulary.counts([s for stems, _ in drafts for s in stems])
    groups = tuple(_group(s, extra, counts, vocabulary.num_passages) for s, extra in drafts)
    return Query(
        groups,
        frozenset(s for group in groups for s in group.stems),
        sum(group.weight for group in groups if not group.extra),
        any(word in SIGN_ASPECTS for word in found),
        " ".join(english),
    )


def _mended(unknown: Sequence[str], language: str, vocabulary: Vocabulary) -> dict[str, str]:
    """Return, by a word that nothing on the shelf has, the one that it is a misspelling of.

    That is the nearest by single letters left out, added, exchanged or swapped (optimal string
    alignment), with the same first letter: one such slip, two in a long word.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import OSA

    long = [word for word in unknown if len(word) >= MIN_MENDED]
    counts = vocabulary.counts([form for word in long for form in _forms(word, language)])
    found = {}
    for word in long:
        if not any(counts.get(form) for form in _forms(word, language)):
            among = _by_initial(vocabulary.words(), language).get(word[0], ())
            slips = 1 + (len(word) >= MIN_MENDED_TWICE)
            if near := process.extractOne(word, among, scorer=OSA.distance, score_cutoff=slips):
                found[word] = near[0]
    return found


def _forms(word: str, language: str) -> tuple[str, ...]:
    """Return the stems under which the shelf may have a word."""
    own = stem(word, language)
    if language != "fr":
        return (own,)
    return (stem(word), french(own), *([own] if len(own) >= MIN_SHARED else []))


@lru_cache(maxsize=4)
def _by_initial(english: Set[str], language: str) -> Mapping[str, Sequence[str]]:
    """Return the words that a misspelling may mean, by their first letter."""
    found: dict[str, list[str]] = {}
    glossed = {word for entry in _listed()[language] for word in words(entry)}
    for word in sorted(glossed | english):
        if len(word) >= MIN_MENDED - 1:
            found.setdefault(word[0], []).append(word)
    return found


def _weighed(meaning: _MEANING) -> dict[str, float]:
    found: dict[str, float] = {}
    for way in meaning:
        for word in way:
            s = stem(word)
            found[s] = max(found.get(s, 0.0), GLOSS / len(way))
    return found


def _group(stems: dict[str, float], extra: bool, counts: Mapping[str, int], total: int) -> Group:
    known = {s: value for s, value in stems.items() if counts.get(s)}
    count = min(total, sum(counts[s] for s in known))
    return Group(known, count, math.log(1 + (total - count + 0.5) / (count + 0.5)), extra)


def _translations(
    content: Sequence[str], language: str, vocabulary: Vocabulary
) -> dict[str, _MEANING]:
    """Return, by word, its meanings in the glossary, or a French word's cognates."""
    entries = _glossary(language)
    found = {word: _entry(entries, word, language) for word in content}
    if language != "fr":
        return found
    bones = {word: skeleton(word) for word in content if not found[word]}
    by_bones: dict[str, list[tuple[str, ...]]] = {}
    wanted = [key for key in set(bones.values()) if key]
    for key, english in vocabulary.cognates(wanted) if wanted else ():
        by_bones.setdefault(key, []).append((english,))
    return found | {word: tuple(by_bones.get(key, ())) for word, key in bones.items()}


def _entry(entries: Mapping[tuple[str, ...], _MEANING], word: str, language: str) -> _MEANING:
    """Return a word's meanings; of a French verb, those of the form without its ending."""
    found = entries.get((root(word, language),), ())
    if not found and language == "fr":
        bare = _VERB_ENDING.sub("", word)
        if len(bare) >= 4:
            found = entries.get((bare,), ()) or entries.get((root(bare, language),), ())
    return found


def meanings_of(word: str, language: str) -> _MEANING:
    """Return what the glossary has for one word: alternatives, each of some English words."""
    return _entry(_glossary(language), word, language)


def _phrases(kept: Sequence[str], language: str) -> tuple[list[_MEANING], set[str]]:
    """Return the meanings of phrases in the question, the longest first, and their words."""
    entries = _glossary(language)
    stems = [root(word, language) for word in kept]
    meanings: dict[tuple[str, ...], _MEANING] = {}
    inside: set[str] = set()
    for places in _places(len(stems)):
        key = tuple(sorted(stems[at] for at in places))
        if key in entries and not all(kept[at] in inside for at in places):
            meanings[key] = entries[key]
            inside |= {kept[at] for at in places}
    return list(meanings.values()), inside


def _places(num_words: int) -> Iterator[tuple[int, ...]]:
    for size in range(MAX_PHRASE, 1, -1):
        for first in range(num_words):
            others = range(first + 1, min(first + WINDOW, num_words))
            for rest in combinations(others, size - 1):
                yield (first, *rest)


@cache
def _glossary(language: str) -> Mapping[tuple[str, ...], _MEANING]:
    """Return the stems of an entry, sorted -> its meanings."""
    empty = FRENCH if language == "fr" else ENGLISH
    found: dict[tuple[str, ...], _MEANING] = {}
    for entry, meaning in _listed()[language].items():
        key = [root(w, language) for w in words(entry) if w not in empty or w in _LINKING]
        ways = tuple(tuple(words(way)) for way in meaning.split("/"))
        found[tuple(sorted(key))] = ways
    return found


@cache
def _listed() -> Mapping[str, Mapping[str, str]]:
    """Return the glossary of each language."""
    import yaml

    listed: Mapping[str, Mapping[str, str]] = yaml.safe_load(GLOSSARY.read_text(encoding="utf-8"))
    return listed
