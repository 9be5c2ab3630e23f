"""Each perturbation does what it says, and nothing else."""

import random
import unicodedata

import pytest

from router.text import clean
from scripts.router import augmentation
from scripts.router_evaluation.perturbations import (
    PAGE_CHARS,
    PERTURBATIONS,
    as_cp1252,
    decomposed,
    perturbed,
    phrases,
    polite,
    within_a_page,
)

TEXT = "L’œil gauche me fait mal, à côté du nez : est-ce déjà de l'eczéma ?"


def change(name: str, text: str = TEXT, lang: str = "fr", seed: int = 0) -> str:
    return perturbed(text, lang, "x-1", name, seed)


def test_no_accents() -> None:
    found = change("no accents")
    assert found == "L’œil gauche me fait mal, a cote du nez : est-ce deja de l'eczema ?"


def test_upper_case() -> None:
    assert change("upper case") == TEXT.upper()


def test_punctuation_removed() -> None:
    found = change("punctuation removed")
    assert found == "L œil gauche me fait mal à côté du nez est ce déjà de l eczéma"


@pytest.mark.parametrize("num_letters", [25, 100, 400])
def test_typos_slip_once_in_25_letters(num_letters: int) -> None:
    text = ("abcdefghij" * 40)[:num_letters]
    name = "typos (one slip in 25 letters)"
    found = [change(name, text, seed=seed) for seed in range(20)]
    slips = num_letters // 25
    assert all(abs(len(one) - len(text)) <= slips for one in found)
    assert len(set(found)) > 10
    assert all(0 < _distance(text, one) <= 2 * slips for one in found)


def _distance(first: str, second: str) -> int:
    """Levenshtein's; a swap counts two."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


@pytest.mark.parametrize("lang", ["en", "fr", "es"])
def test_the_question_stands_whole_in_a_polite_chat(lang: str) -> None:
    found = polite(TEXT, lang, random.Random(0))
    before, after = found.split(TEXT)
    assert (before.strip(), after.strip()) in {
        tuple(pair) for pair in phrases("polite")[lang if lang in phrases("polite") else "en"]
    }


@pytest.mark.parametrize("lang", ["en", "fr"])
def test_a_page_has_the_question_whole_and_about_2000_characters_around_it(lang: str) -> None:
    places = set()
    for seed in range(10):
        found = within_a_page(TEXT, lang, random.Random(seed))
        before, after = found.split(TEXT)
        assert PAGE_CHARS <= len(found) - len(TEXT) <= PAGE_CHARS + 120
        places.add(len(before))
        for sentence in phrases("neutral")[lang]:
            before, after = before.replace(sentence, ""), after.replace(sentence, "")
        assert not (before + after).strip()
    assert len(places) > 5  # not always at the end


def test_utf8_read_as_cp1252() -> None:
    assert as_cp1252("é à œ") == "Ã© Ã\u00a0 Å“"
    assert as_cp1252("\u00cd") == "Ã\u008d"  # its second byte is undefined in cp1252
    assert as_cp1252("plain") == "plain"
    assert as_cp1252(TEXT).encode("cp1252", errors="strict").decode("utf-8") == TEXT
    assert clean(as_cp1252(TEXT)) == TEXT


def test_decomposed_accents() -> None:
    found = decomposed(TEXT)
    assert len(found) > len(TEXT)
    assert unicodedata.normalize("NFC", found) == TEXT


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_same_id_and_seed_give_the_same_text(name: str) -> None:
    assert change(name) == change(name)
    assert change(name) != TEXT
    drawn = {"typos (one slip in 25 letters)", "within a page of text"}
    if name in drawn:
        assert len({change(name, seed=seed) for seed in range(5)}) > 1


def test_what_surrounds_a_question_is_not_what_training_has() -> None:
    for lang in ("en", "fr"):
        trained = set(augmentation.phrases("padding")[lang])
        polite_in_training = {
            part.strip() for pair in augmentation.phrases("courtesies")[lang] for part in pair
        }
        evaluated = {part for pair in phrases("polite")[lang] for part in pair}
        assert not trained & set(phrases("neutral")[lang])
        assert not polite_in_training & evaluated
        assert sum(len(sentence) + 1 for sentence in phrases("neutral")[lang]) >= PAGE_CHARS
        assert len(set(phrases("neutral")[lang])) == len(phrases("neutral")[lang])
