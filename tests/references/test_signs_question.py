"""Questions that list signs and ask which disease has them, and those that do something else."""

from pathlib import Path

import pytest

from references.default_shelf import ensure_shelf
from references.shelf import build
from references.signs_question import asked_signs, diseases_asked_for
from tests.references.passages import ALL, hpo_folder
from tests.references.test_shelf import Letters


@pytest.mark.parametrize(
    ("question", "signs"),
    [
        ("Which disease has a small head and floppy muscles?", ["small head", "floppy muscles"]),
        (
            "What disease causes tall stature, lens dislocation?",
            ["tall stature", "lens dislocation"],
        ),
        (
            "I have a fever, a stiff neck and headaches. What could it be?",
            ["fever", "stiff neck", "headaches"],
        ),
        (
            "My daughter has seizures and hypotonia: which syndrome is it?",
            ["seizures", "hypotonia"],
        ),
        (
            "What condition has these symptoms: jaundice, itching, and pale stools",
            ["jaundice", "itching", "pale stools"],
        ),
        (
            "Which genetic disorder is characterized by short stature and webbed neck?",
            ["short stature", "webbed neck"],
        ),
        ("A patient presents with hematuria and deafness. Diagnosis?", ["hematuria", "deafness"]),
        ("What do I have? Rash, joint pain.", ["Rash", "joint pain"]),
        ("What is wrong with my son? He has a rash and a cough", ["rash", "cough"]),
        ("Is there a disease with hearing loss and blindness?", ["hearing loss", "blindness"]),
        (
            "Which diseases have brittle hair, sparse hair but no seizures?",
            ["brittle hair", "sparse hair"],
        ),
        ("Quelle maladie donne de la fièvre et des maux de tête ?", ["fièvre", "maux de tête"]),
        ("J\u2019ai de la fièvre et une toux. Qu\u2019est-ce que j\u2019ai ?", ["fièvre", "toux"]),
        (
            "Mon fils a des convulsions et une petite tête, quelle est cette maladie ?",
            ["convulsions", "petite tête"],
        ),
        ("Quel syndrome associe surdité et rétinite ?", ["surdité", "rétinite"]),
        ("De quoi souffre un enfant avec fièvre et éruption ?", ["fièvre", "éruption"]),
        ("What is eczema?", []),
        ("What are the signs of Marfan syndrome?", []),
        ("What is the difference between the diseases psoriasis and eczema?", []),
        ("Which diseases are treated with insulin and metformin?", []),
        ("Which disease is more serious, asthma and cough or fever?", []),
        ("I have a headache and nausea. What should I do?", []),
        ("Quelle est la différence entre les maladies A et B ?", []),
        ("Quels sont les signes du psoriasis et de la goutte ?", []),
        ("", []),
    ],
)
def test_the_signs_of_a_question(question: str, signs: list[str]) -> None:
    assert asked_signs(question) == signs


def test_a_very_long_question_is_read_in_time() -> None:
    assert len(asked_signs("Which disease has " + "fever, " * 20_000)) == 1
    assert asked_signs("what which what " * 20_000) == []


def test_diseases_that_match_two_signs(tmp_path: Path) -> None:
    hpo = hpo_folder(tmp_path / "hpo")
    shelf = ensure_shelf(tmp_path / "s.db", folder=hpo, progress=False, vectorise=Letters())

    def found(question: str) -> dict[str, list[str]]:
        matches = diseases_asked_for(shelf, question, limit=5)
        return {m.passage.id: sorted(m.signs.values()) for m in matches}

    both = {"OMIM:1": ["Brittle hair", "Sparse hair"]}
    assert found("Which disease has fragile hair and thin hair?") == both
    assert found("Which disease has fragile hair?") == {}
    assert found("What is fragile hair and thin hair?") == {}
    assert found("Which disease has xxxx and yyyy?") == {}


def test_a_shelf_without_signs_lists_no_diseases(tmp_path: Path) -> None:
    shelf = build(tmp_path / "s.db", ALL)
    assert not shelf.has_signs
    assert diseases_asked_for(shelf, "Which disease has fever and cough?", limit=5) == []
