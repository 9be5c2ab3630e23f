"""Scores of single answers, terms of a specialty, and questions that ask for a diagnosis."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.datasets.attributions import PUBLISHERS
from scripts.evaluation.diagnostic import VIGNETTES, diagnostic_items, is_named
from scripts.evaluation.metrics import (
    cited_publisher,
    nearest_answers,
    repeats,
    rouge_l,
    unsupported_numbers,
    urls,
)
from scripts.evaluation.terms import terms_of, used_share


def test_rouge_l_by_hand() -> None:
    """The longest common subsequence of "the skin is dry" and "the skin gets dry" has 3 of 4."""
    scores = rouge_l(["the skin is dry", "a b", "rashes"], ["the skin gets dry", "c d", "rash"])
    assert list(scores) == pytest.approx([75, 0, 100])  # the last through stemming


def test_the_nearest_question_gives_its_answer() -> None:
    training = [("What is eczema?", "skin"), ("What causes migraine?", "head")]
    assert nearest_answers(["what triggers a migraine", "eczema?"], training) == ["head", "skin"]


def test_web_addresses() -> None:
    text = "See https://a.example/x, (http://b.example) or www.c.example. Not a.b"
    assert urls(text) == ["https://a.example/x", "http://b.example", "www.c.example"]


def test_the_publisher_that_an_answer_names() -> None:
    known = next(iter(PUBLISHERS.values()))
    assert cited_publisher(f"It itches.\nSource: {known}") == known
    assert cited_publisher("The Source: of it all") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("it is red and dry. " * 3, True),
        ("it is red and dry. " * 2, False),
        ("one two three", False),
        ("", False),
    ],
)
def test_going_in_circles(answer: str, expected: bool) -> None:
    assert repeats(answer) is expected


def test_numbers_that_nothing_supports() -> None:
    """1,000 is in the reference and 3 in the question; 7 comes twice and counts once."""
    assert (
        unsupported_numbers("Is 3 normal?", "1,000 people", "3 of 1,000, or 7, or 7, or 2.5") == 2
    )


SKIN = ["eczema itches the skin", "the eczema cream", "eczema of the skin and dermatitis", "a rash"]
HEART = ["the heart beats", "a heart attack", "the pulse", "the pressure of the blood"]


def test_terms_are_words_of_the_specialty_and_medical_word_forms() -> None:
    terms = terms_of(SKIN, HEART)
    assert terms == {"eczema", "dermatitis"}  # "skin" is in too few answers, "the" everywhere
    assert terms_of(SKIN, []) == {"dermatitis"}


@pytest.mark.parametrize(
    ("question", "answer", "share"),
    [
        ("What is it?", "Eczema, a dermatitis", 1.0),
        ("What is it?", "Eczemas", 0.5),
        ("What is it?", "a rash", 0.0),
        ("Is eczema a dermatitis?", "yes: eczema, dermatitis", None),
        ("What is eczema?", "eczema is dermatitis", 1.0),
    ],
)
def test_share_of_the_references_terms(question: str, answer: str, share: float | None) -> None:
    terms = frozenset({"eczema", "dermatitis"})
    assert used_share(question, "Eczema is a dermatitis.", answer, terms) == share


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("This is Marble fever.", True),
        ("It may be marble-fever, or not.", True),
        ("Fever of marble", False),
        ("It could be MF.", True),
        ("", False),
    ],
)
def test_a_named_disease(answer: str, expected: bool) -> None:
    assert is_named(answer, ("Marble fever", "MF")) is expected


def signs(focus: str, *more: str, split: str = "validation") -> dict[str, Any]:
    listed = ", ".join(["Blue nails", "Cold ears", "Stiff thumbs", *more])
    return {
        "id": focus,
        "input": f"What are the symptoms of {focus}?",
        "output": f"Signs and symptoms reported for {focus} include: {listed}.",
        "focus": focus,
        "split": split,
    }


def vignette(id_: str, ending: str, right: str = "Glass elbow", **more: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "specialty": "dermatology",
        "lang": "en",
        "input": f"A man of 40 cannot bend his arm. {ending}",
        "options": "1- Glass elbow.\n2- Tin knee.",
        "output": f"{right}. The arm tells.",
        **more,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_questions_that_ask_for_a_disease_without_naming_it(tmp_path: Path) -> None:
    rows = [
        signs("Marble fever (MF)", "Autosomal dominant inheritance", "Bald knees 50%"),
        signs("Blue nail disease"),  # its signs give it away
        signs("Paper bones", split="train"),
        {"id": "few", "input": "?", "output": "It itches.", "split": "validation", "focus": "X"},
    ]
    write(tmp_path / "dermatology.jsonl", rows)
    asked = "What is the most likely diagnosis?"
    write(
        tmp_path / VIGNETTES,
        [
            vignette("right", asked),
            vignette("treatment", "Which treatment do you choose?"),
            vignette("test", "Which test confirms the most likely diagnosis?"),
            vignette("french", asked, lang="fr"),
            vignette("elsewhere", asked, specialty="cardiology"),
            vignette("no option", asked, right="Wax foot"),
            vignette("named", f"Glass elbow runs in his family. {asked}"),
        ],
    )
    items = diagnostic_items(tmp_path, "dermatology")
    assert [item.id for item in items] == ["diagnosis/Marble fever (MF)", "diagnosis/right"]
    first, second = items
    assert first.names == ("Marble fever", "MF")
    assert first.question == (
        "Which disease has these signs and symptoms: Blue nails, Cold ears, Stiff thumbs?"
    )
    assert (first.origin, second.origin) == ("signs", "vignette")
    assert second.names == ("Glass elbow",)
