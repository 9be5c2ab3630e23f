"""Patterns of words: what each sign of the notation means, and what a pattern never does."""

import pytest

from router.preparation.phrases import PhraseBook
from router.preparation.reading import read
from router.preparation.spelling import Speller


def found(pattern: str, text: str) -> list[str]:
    book = PhraseBook({"x": {"en": [pattern]}}, {"kin": "mother son"})
    reading = read(text, {})
    spans = book.find(reading.words, reading.sentences, reading.clauses).get("x", [])
    return [" ".join(reading.words[s.start : s.end]) for s in spans]


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("pain|ache", "An ache", ["ache"]),
        ("vomit*", "he vomited", ["vomited"]),
        ("chest ~ pain", "chest: a dull pain", ["chest a dull pain"]),
        ("chest ~ pain", "chest and then a long dull pain", []),
        ("chest ~~ pain", "chest and then a long dull pain", ["chest and then a long dull pain"]),
        ("very bad? pain", "very pain", ["very pain"]),
        ("$kin fell", "my Mother fell", ["mother fell"]),
        ("chest ~ pain", "my chest. The pain", []),
        ("lot ~ bleeding", "a lot, no bleeding", []),
        ("moves ~ not", "moves well, not at all", []),
        ("moves ~ not", "moves his arm not", ["moves his arm not"]),
    ],
)
def test_the_notation(pattern: str, text: str, expected: list[str]) -> None:
    assert found(pattern, text) == expected


def test_words_are_folded_and_numbers_stand_alone() -> None:
    reading = read("J’ai 38,5°C, l'Œil isn't  OK? w/o 58M", {"w/o": "without"})
    assert reading.words == "j ai 38,5 c l oeil isnt ok without 58 m".split()
    assert reading.sentences[-3:] == [1, 1, 1]
    assert reading.questions == {0}


def test_a_misspelt_word_becomes_the_one_that_was_meant() -> None:
    vocabulary = ("bleach", "seizure", "arm", "vomiting", "convulsing")
    speller = Speller({word: word for word in vocabulary}, {*vocabulary, "bleed", "preach"})
    for wrong, right in (
        ("bleech", "bleach"),
        ("siezure", "seizure"),
        ("seisure", "seizure"),
        ("vommiting", "vomiting"),
        ("convulsng", "convulsing"),
        ("bleeds", None),
        ("preach", None),
        ("art", None),
    ):
        assert speller.correction(wrong) == right
