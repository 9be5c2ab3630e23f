"""Medical words put together from the parts that a question names in everyday words.

"Too little potassium in the blood" names hypo-, kal and -emia: of all words that these parts make,
those that the shelf has stand for the question. The parts are in morphemes.yaml.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from references.words import root, words

MORPHEMES = Path(__file__).with_name("morphemes.yaml")
MAX_WORDS = 1500  # that are looked up for one question
MIN_LETTERS = 5  # of a word: shorter ones are others by chance
_MAX_PARTS = 6  # of a kind: a question that names more says little with each
_VOWELS = "aeiouy"


@dataclass(frozen=True, slots=True)
class _Part:
    """A form of a part, and the words of the question that say it, as roots."""

    form: str
    said: frozenset[str]

    def is_apart(self, other: "_Part") -> bool:
        """Return whether other words say the other part."""
        return not (self.said <= other.said or other.said <= self.said)


def compounds(question: str, language: str) -> list[str]:
    """Return words that the named parts make; most of them do not exist."""
    found = frozenset(root(word, language) for word in words(question))
    prefixes, roots, suffixes = (_said(kind, language, found) for kind in _KINDS)
    made: dict[str, None] = {}
    for first in roots:
        made |= _ended(first, suffixes)
        for second in roots:
            if first.is_apart(second):
                for joined in _joined(first, second):
                    made |= _ended(joined, suffixes)
    for prefix in prefixes:
        made |= _ended(prefix, suffixes)
        for second in roots:
            if prefix.is_apart(second):
                for joined in _joined(prefix, second):
                    made |= _ended(joined, suffixes)
                    made |= dict.fromkeys(joined.form + ending for ending in _endings())
    return [word for word in made if len(word) >= MIN_LETTERS][:MAX_WORDS]


def _said(kind: str, language: str, found: frozenset[str]) -> list[_Part]:
    """Return the parts that the question says, those said in most words first."""
    said = []
    for forms, ways in _parts(language)[kind]:
        held = [way for way in ways if way <= found]
        if held:
            said.append((forms, max(held, key=len)))
    said.sort(key=lambda pair: -len(pair[1]))
    return [_Part(form, way) for forms, way in said[:_MAX_PARTS] for form in forms]


def _ended(first: _Part, suffixes: Iterable[_Part]) -> dict[str, None]:
    return {
        joined.form: None
        for suffix in suffixes
        if first.is_apart(suffix)
        for joined in _joined(first, suffix)
    }


def _joined(first: _Part, second: _Part) -> list[_Part]:
    """Return both forms joined, with o between consonants, and one vowel where two meet."""
    a, b = first.form, second.form
    if b[0] in _VOWELS:
        made = [a + b, a[:-1] + b] if a[-1] in _VOWELS else [a + b]
    else:
        made = [a + b] if a[-1] in _VOWELS else [f"{a}o{b}", a + b]
    return [_Part(form, first.said | second.said) for form in made]


_KINDS = ("prefixes", "roots", "suffixes")


@cache
def _content() -> Mapping[str, Any]:
    import yaml

    content: Mapping[str, Any] = yaml.safe_load(MORPHEMES.read_text(encoding="utf-8"))
    return content


def _endings() -> Sequence[str]:
    endings: Sequence[str] = _content()["endings"]
    return endings


@cache
def _parts(language: str) -> Mapping[str, Sequence[tuple[Sequence[str], Sequence[frozenset[str]]]]]:
    """Return, by kind, the forms of each part and the ways to say it, each some roots."""
    at = 1 if language == "fr" else 0
    return {
        kind: [
            (
                str(forms).split(),
                [
                    frozenset(root(word, language) for word in words(way))
                    for way in str(said[at]).split("/")
                ],
            )
            for forms, said in _content()[kind].items()
        ]
        for kind in _KINDS
    }
