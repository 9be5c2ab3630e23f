"""Leave out symptoms that a text denies: "No chest pain, no dyspnoea. Knee pain" is about a knee.

What is denied (negation.py) goes only if the rest of the text says what it is about, and to be
without a function of the body ("no appetite") is a complaint, so it stays; to be without its loss
("no loss of appetite") is none (negation.yaml).
"""

from collections.abc import Sequence
from functools import cache

from router.lexicon import WordList, lexicon
from router.preparation.edited import Edit, EditedText
from router.preparation.negation import Negations
from router.preparation.phrases import PhraseBook
from router.preparation.reading import read
from router.text import words_of

FIRST_WORDS = 3  # of a denial, which name what is denied


@cache
def _patterns() -> tuple[PhraseBook, WordList, WordList]:
    content = lexicon("preparation/negation")
    functions, losses = WordList.of(content["functions"]), WordList.of(content["losses"])
    return PhraseBook(content["groups"], {}), functions, losses


def denied_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of each denial in a text, trigger and all."""
    book, functions, losses = _patterns()
    reading = read(text, {})
    found = book.find(reading.words, reading.sentences, reading.clauses)
    scopes = Negations(reading, found, triggers="denial").scopes
    spans: list[tuple[int, int]] = []
    for trigger, stop in sorted(scopes, key=lambda scope: (scope[0].start, -scope[0].end)):
        start = reading.starts[trigger.start]
        denied = reading.words[trigger.end : stop]
        if (spans and start < spans[-1][1]) or not denied:
            continue
        if not _is_complaint(denied[:FIRST_WORDS], functions, losses):
            spans.append((start, reading.ends[stop - 1]))
    return spans


def _is_complaint(first: Sequence[str], functions: WordList, losses: WordList) -> bool:
    """Return whether a function that is missing is meant ("no appetite"), and not a loss of one
    that is denied: "no change in vision", "no vision loss"."""
    at = next((number for number, word in enumerate(first) if word in functions), None)
    if at is None:
        return False
    return not any(word in losses for word in (*first[:at], *first[at + 1 : at + 2]))


def without_denials(text: EditedText) -> tuple[EditedText, bool]:
    """Return the text without what it denies, and whether it asserts nothing else.

    A text that only denies ("no fever") stays as it is.
    """
    spans = denied_spans(text.text)
    if not spans:
        return text, False
    left = text.apply(Edit(start, end, " ") for start, end in spans)
    return (left, False) if has_something_left(left.text) else (text, True)


def has_something_left(text: str) -> bool:
    """Return whether words are left that are neither function words nor generic."""
    return any(word.normal not in _common() and len(word.normal) > 1 for word in words_of(text))


@cache
def _common() -> WordList:
    content = lexicon("specialties")
    return WordList.of(*content["function_words"].values(), *content["generic"].values())
