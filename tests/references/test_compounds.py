"""Medical words out of the parts that a question names."""

import pytest
import yaml

from references.compounds import MAX_WORDS, MORPHEMES, compounds

EVERYTHING = " ".join(
    word
    for kind in ("prefixes", "roots", "suffixes")
    for said in yaml.safe_load(MORPHEMES.read_text(encoding="utf-8"))[kind].values()
    for word in str(said[0]).replace("/", " ").split()
)


@pytest.mark.parametrize(
    ("question", "language", "word"),
    [
        ("Too little potassium in the blood", "en", "hypokalemia"),
        ("The stomach is inflamed", "en", "gastritis"),
        ("He drinks water all day, always thirsty, so much", "en", "polydipsia"),
        ("The nail is fully white", "en", "leukonychia"),
        ("No urine at all", "en", "anuria"),
        ("An enlarged liver", "en", "hepatomegaly"),
        ("Pas assez de sodium dans le sang", "fr", "hyponatremia"),
        ("Le foie est gros", "fr", "hepatomegaly"),
        ("L'oreille est enflammée", "fr", "otitis"),
    ],
)
def test_parts_make_the_word(question: str, language: str, word: str) -> None:
    assert word in compounds(question, language)


@pytest.mark.parametrize("question", ["", "?", "Who won the cup?", "the kidney", "low"])
def test_one_part_or_none_makes_nothing(question: str) -> None:
    assert compounds(question, "en") == []


def test_a_question_that_names_everything_is_bounded() -> None:
    assert len(compounds(EVERYTHING, "en")) <= MAX_WORDS
