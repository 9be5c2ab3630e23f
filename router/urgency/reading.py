"""Read a text for the red flags: folded words, the sentence and clause of each, and its numbers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from router.text import clean, normalise

_LIGATURES = str.maketrans({"\u0153": "oe", "\u00e6": "ae", "\u2019": "'", "\u2018": "'"})
_TOKEN = re.compile(
    r"(?P<number>\d+(?:[.,]\d+)*)"
    r"|(?P<word>\b[a-z]/[a-z]\b|[^\W\d_]+(?:'[^\W\d_]+)*)"
    r"|(?P<end>[.!?;\n\u2026]+)"
    r"|(?P<comma>[,:()]|\s[-\u2013\u2014]+\s|->|=>)"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as the rules see it. All lists have one entry for each word, but `questions`.

    Attributes:
        folded: the text in small letters, without accents.
        words: folded; "can't" is "cant", "j'ai" is "j", "ai"; a number is a word.
        starts: where the word begins in `folded`.
        sentences, clauses: their numbers, from 0; commas, colons and brackets end a clause.
        questions: the sentences that end in a question mark.
    """

    folded: str
    words: list[str]
    starts: list[int]
    sentences: list[int]
    clauses: list[int]
    questions: frozenset[int]


def fold(text: str) -> str:
    """Return `text` in small letters without accents, with ligatures and apostrophes unified."""
    return normalise(clean(text).translate(_LIGATURES)).translate(_LIGATURES)


def read(text: str, shorthand: Mapping[str, str]) -> Reading:
    """Return the words of `text`; one that `shorthand` has becomes the words that it stands for."""
    folded = fold(text)
    words: list[str] = []
    starts: list[int] = []
    sentences: list[int] = []
    clauses: list[int] = []
    questions = set()
    sentence = clause = 0
    for match in _TOKEN.finditer(folded):
        kind, piece = match.lastgroup, match.group()
        if kind == "end":
            if "?" in piece:
                questions.add(sentence)
            sentence += 1
            clause += 1
        elif kind == "comma":
            clause += 1
        else:
            for part in _parts(piece):
                for word in shorthand.get(part, part).split():
                    words.append(word)
                    starts.append(match.start())
                    sentences.append(sentence)
                    clauses.append(clause)
    return Reading(folded, words, starts, sentences, clauses, frozenset(questions))


def _parts(piece: str) -> list[str]:
    """Split at apostrophes, but keep English negations whole: "isn't" -> "isnt"."""
    if "'" not in piece:
        return [piece]
    if piece.endswith("n't"):
        return [piece.replace("'", "")]
    return piece.split("'")
