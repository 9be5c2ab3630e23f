"""Patterns of words, as red_flags.yaml and context.yaml write them, and where a text has them.

`chest|thorax ~ pain|hurt*` has elements with alternatives. `hurt*` is any word that begins so, `~`
up to three words of any kind, `~~` up to six, `sharp?` may be missing, `$kin` is a list of words
that the file names. A pattern never crosses the end of a sentence.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

GAPS = {"~": 3, "~~": 6}


# A gap never holds one of these: what follows is another matter.
BARRIERS = frozenset("no without denies sans ni aucun aucune neither nor but mais".split())

_DENIALS = frozenset("not never pas plus jamais".split())


class Span(NamedTuple):
    """Words `start` to `end` (excluded) of a text, where a pattern of `language` was found.

    Attributes:
        skipped: the words among them that stood in a gap of the pattern.
    """

    start: int
    end: int
    language: str
    skipped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Element:
    """One place of a pattern; `gap` words of any kind may come before it."""

    words: frozenset[str]
    stems: tuple[str, ...]
    gap: int = 0
    is_optional: bool = False

    def matches(self, word: str) -> bool:
        return word in self.words or word.startswith(self.stems)


@dataclass(frozen=True, slots=True)
class _Phrase:
    name: str
    language: str
    rest: tuple[Element, ...]


class PhraseBook:
    """Named groups of patterns, found together in one pass over a text.

    Args:
        groups: name -> language -> patterns.
        lists: name of a list -> its words, separated by spaces.

    Raises:
        ValueError: a pattern is malformed; names it.
    """

    def __init__(
        self, groups: Mapping[str, Mapping[str, Sequence[str]]], lists: Mapping[str, str]
    ) -> None:
        self._by_word: dict[str, list[_Phrase]] = defaultdict(list)
        self._by_stem: dict[str, list[_Phrase]] = defaultdict(list)
        self.words: set[str] = set()
        self.stems: set[str] = set()
        for name, languages in groups.items():
            for language, patterns in languages.items():
                for pattern in patterns:
                    self._add(name, language, parse(pattern, lists))
        self._stem_lengths = sorted({len(stem) for stem in self._by_stem})

    def find(
        self, words: Sequence[str], sentences: Sequence[int], clauses: Sequence[int]
    ) -> dict[str, list[Span]]:
        """Return, by group, where its patterns are, in the order of the text.

        A denial that a pattern has ("moves ~ not") is in the clause where the pattern begins.
        """
        found: dict[str, list[Span]] = defaultdict(list)
        stop = len(words)
        ends = [stop] * stop  # of each word's sentence
        for at in range(stop - 2, -1, -1):
            is_last = sentences[at] != sentences[at + 1]
            ends[at] = at + 1 if is_last else ends[at + 1]
        for at, word in enumerate(words):
            for phrase in self._beginning_with(word):
                matched = _places(phrase.rest, 0, words, at + 1, ends[at])
                if matched is not None and all(
                    words[i] not in _DENIALS or clauses[i] == clauses[at] for i in matched
                ):
                    end = matched[0] + 1 if matched else at + 1
                    skipped = tuple(i for i in range(at + 1, end) if i not in matched)
                    found[phrase.name].append(Span(at, end, phrase.language, skipped))
        return found

    def _beginning_with(self, word: str) -> Iterable[_Phrase]:
        yield from self._by_word.get(word, ())
        for length in self._stem_lengths:
            if length > len(word):
                return
            yield from self._by_stem.get(word[:length], ())

    def _add(self, name: str, language: str, elements: Sequence[Element]) -> None:
        first, phrase = elements[0], _Phrase(name, language, tuple(elements[1:]))
        for word in first.words:
            self._by_word[word].append(phrase)
        for stem in first.stems:
            self._by_stem[stem].append(phrase)
        for element in elements:
            self.words |= element.words
            self.stems.update(element.stems)


def parse(pattern: str, lists: Mapping[str, str]) -> list[Element]:
    """Return the elements of a pattern.

    Raises:
        ValueError: it names an unknown list, or begins or ends with something that may be missing.
    """
    elements: list[Element] = []
    gap = 0
    for part in pattern.split():
        if part in GAPS:
            gap = GAPS[part]
            continue
        elements.append(_element(part, gap, lists, pattern))
        gap = 0
    if (
        gap
        or not elements
        or elements[0].gap
        or elements[0].is_optional
        or elements[-1].is_optional
    ):
        raise ValueError(f"'{pattern}': a pattern begins and ends with a word that must be there")
    return elements


def _element(part: str, gap: int, lists: Mapping[str, str], pattern: str) -> Element:
    is_optional = part.endswith("?")
    alternatives: list[str] = []
    for choice in part.removesuffix("?").split("|"):
        if choice.startswith("$"):
            if choice[1:] not in lists:
                raise ValueError(
                    f"'{pattern}': no list is named {choice}; there is {sorted(lists)}"
                )
            alternatives += lists[choice[1:]].split()
        else:
            alternatives.append(choice)
    stems = tuple(a.removesuffix("*") for a in alternatives if a.endswith("*"))
    words = frozenset(a for a in alternatives if not a.endswith("*"))
    for word in (*stems, *words):
        if not (word.isascii() and word.isalnum() and word == word.lower()):
            raise ValueError(f"'{pattern}': '{word}' is not a folded word: small letters or digits")
    return Element(words, stems, gap, is_optional)


def _places(
    rest: Sequence[Element], i: int, words: Sequence[str], at: int, stop: int
) -> list[int] | None:
    """Return where elements `i` and later stand, the last first, looked for from word `at`.

    Returns None if they do not fit.
    """
    if i == len(rest):
        return []
    element = rest[i]
    for here in range(at, min(at + element.gap + 1, stop)):
        if element.matches(words[here]):
            places = _places(rest, i + 1, words, here + 1, stop)
            if places is not None:
                return [*places, here]
        if words[here] in BARRIERS:
            break
    return _places(rest, i + 1, words, at, stop) if element.is_optional else None
