"""Training texts as people write them: the term stays, slips touch letters, seeds decide."""

import random
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.router.augmentation import (
    NEIGHBOURS,
    Rates,
    altered,
    as_question,
    padded,
    phrases,
    with_typos,
    without_accents,
    without_punctuation,
)

SEEDS = st.integers(0, 10_000)
NEVER = Rates(courtesy=0, padding=0, no_accents=0, typos=0, no_punctuation=0)
COURTESIES, PADDING = phrases("courtesies")["fr"], phrases("padding")["fr"]
TEXT = "Est-ce que l'eczéma, c'est grave ?"


@pytest.mark.parametrize("lang", ["en", "fr", "de"])
@given(seed=SEEDS)
def test_a_question_keeps_its_term(lang: str, seed: int) -> None:
    for term in ("Angina pectoris", "COPD", "{braces} 5%", "Œdème", "x"):
        question = as_question(term, lang, random.Random(seed))
        assert term.lower() in question.lower()
        assert term[1:] in question
    assert "COPD" in as_question("COPD", lang, random.Random(seed))  # not "cOPD"


def test_every_template_has_one_place_and_is_used() -> None:
    for lang, questions in phrases("templates").items():
        assert all(template.count("{}") == 1 for template in questions)
        found = {as_question("ABC", lang, random.Random(seed)) for seed in range(500)}
        assert found == {template.format("ABC") for template in questions}
    assert as_question("ABC", "de", random.Random(0)) == "ABC"


@given(st.text("abcdefghijklmnopqrstuvwxyzéà ,.!?0123456789", max_size=80), SEEDS)
def test_typos_change_letters_only(text: str, seed: int) -> None:
    found = with_typos(text, random.Random(seed), 0.2)
    assert [c for c in found if not c.isalpha()] == [c for c in text if not c.isalpha()]
    num_letters = sum(c.isalpha() for c in text)
    if num_letters < 4:
        assert found == text
    else:
        slips = max(1, round(0.2 * num_letters))
        assert abs(len(found) - len(text)) <= slips


def test_a_text_gets_a_slip_for_each_twenty_five_letters_or_so() -> None:
    text = "abcdefghij" * 20
    found = [with_typos(text, random.Random(seed)) for seed in range(50)]
    assert all(typed != text for typed in found)
    lengths = {len(typed) - len(text) for typed in found}
    assert min(lengths) < 0 < max(lengths)  # dropped and doubled


def test_neighbours_are_letters_beside_each_other() -> None:
    assert set(NEIGHBOURS) == set(string.ascii_lowercase)
    for letter, around in NEIGHBOURS.items():
        assert around.isalpha()
        assert letter not in around


def test_accents_and_punctuation_are_taken_away() -> None:
    assert without_accents("Œdème, où ça ?") == "Œdeme, ou ca ?"
    assert without_punctuation("l'eczéma, c'est_grave ?!") == "l eczéma c est grave"
    assert not any(unicodedata.combining(c) for c in without_accents(TEXT))


@given(SEEDS)
def test_a_letter_holds_the_question_once_and_nothing_twice(seed: int) -> None:
    for lang in phrases("padding"):
        letter = padded(TEXT, lang, random.Random(seed))
        assert letter.count(TEXT) == 1
        around = [s for s in phrases("padding")[lang] if s in letter]
        assert 2 <= len(around) <= 16
        assert len(letter) == len(TEXT) + sum(len(s) + 1 for s in around)


def test_padding_has_no_sentence_twice_and_languages_share_none() -> None:
    for sentences in phrases("padding").values():
        assert len(set(sentences)) == len(sentences) >= 16
    assert not set(phrases("padding")["en"]) & set(phrases("padding")["fr"])


@pytest.mark.parametrize(
    ("rates", "holds"),
    [
        (
            Rates(1, 0, 0, 0, 0),
            lambda t: any(t == f"{a}{TEXT}{b}" for a, b in COURTESIES),
        ),
        (
            Rates(0, 1, 0, 0, 0),
            lambda t: TEXT in t and any(s in t for s in phrases("padding")["fr"]),
        ),
        (Rates(0, 0, 1, 0, 0), lambda t: t == "Est-ce que l'eczema, c'est grave ?"),
        (Rates(0, 0, 0, 1, 0), lambda t: t != TEXT and abs(len(t) - len(TEXT)) < 5),
        (Rates(0, 0, 0, 0, 1), lambda t: t == "Est ce que l eczéma c est grave"),
        (NEVER, lambda t: t == TEXT),
    ],
    ids=["courtesy", "padding", "accents", "typos", "punctuation", "nothing"],
)
def test_each_change_has_its_own_rate(rates: Rates, holds: object) -> None:
    assert callable(holds)
    for seed in range(30):
        assert holds(altered(TEXT, "fr", random.Random(seed), rates))


def test_a_language_without_courtesies_gets_none() -> None:
    assert altered("Was tun?", "de", random.Random(0), Rates(1, 1, 0, 0, 0)) == "Was tun?"


def test_the_seed_decides() -> None:
    one = [altered(TEXT, "fr", random.Random(seed), Rates()) for seed in range(200)]
    assert one == [altered(TEXT, "fr", random.Random(seed), Rates()) for seed in range(200)]
    assert len(set(one)) > 50
    assert TEXT in one  # some stay as they are
