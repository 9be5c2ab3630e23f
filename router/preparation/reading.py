"""Read a text as rules see it: folded words, and the place, sentence and clause of each."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from router.text import folded

_LIGATURES = str.maketrans({"\u0153": "oe", "\u00e6": "ae"})
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
        folded: the text in small letters, without accents, character by character.
        words: folded; "can't" is "cant", "j'ai" is "j", "ai"; a number is a word.
        starts, ends: the word's characters, in `folded` and in the text.
        sentences, clauses: their numbers, from 0; commas, colons and brackets end a clause.
        questions: the sentences that end in a question mark.
    """

    folded: str
    words: list[str]
    starts: list[int]
    ends: list[int]
    sentences: list[int]
    clauses: list[int]
    questions: frozenset[int]

    def end_of_sentence(self, at: int) -> int:
        """Return the first word behind the sentence of word `at`."""
        return bisect_right(self.sentences, self.sentences[at])


def read(text: str, shorthand: Mapping[str, str]) -> Reading:
    """Return the words of a clean text; what `shorthand` has becomes the words it stands for."""
    searched = folded(text)
    words: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    sentences: list[int] = []
    clauses: list[int] = []
    questions = set()
    sentence = clause = 0
    for match in _TOKEN.finditer(searched):
        kind, piece = match.lastgroup, match.group()
        if kind == "end":
            if "?" in piece:
                questions.add(sentence)
            sentence += 1
            clause += 1
        elif kind == "comma":
            clause += 1
        else:
            for start, end, part in _parts(piece):
                for word in shorthand.get(part, part.translate(_LIGATURES)).split():
                    words.append(word)
                    starts.append(match.start() + start)
                    ends.append(match.start() + end)
                    sentences.append(sentence)
                    clauses.append(clause)
    return Reading(searched, words, starts, ends, sentences, clauses, frozenset(questions))


def _parts(piece: str) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, word) at apostrophes, but English negations whole: "isn't" -> "isnt"."""
    if piece.endswith("n't"):
        yield 0, len(piece), piece.replace("'", "")
        return
    start = 0
    for part in piece.split("'"):
        yield start, start + len(part), part
        start += len(part) + 1
