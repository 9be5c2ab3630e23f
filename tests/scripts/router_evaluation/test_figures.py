"""Groups of questions, copies of training texts, and verdicts on targets."""

import numpy as np
import pytest

from scripts.router_evaluation import figures as figures
from scripts.router_evaluation.metrics import Estimate
from scripts.router_evaluation.questions import (
    ALL_TEXTS,
    PUBLIC,
    Item,
    Scored,
    fold,
    training_of,
    without_copies,
)
from scripts.router_evaluation.tables import number
from scripts.router_evaluation.targets import Target


def item(text: str, specialty: str = "cardiology", **changed: str) -> Item:
    fields = {"id": text, "lang": "en", "source": "MedQuAD/GARD", "split": "", "kind": "question"}
    return Item(text=text, specialty=specialty, **(fields | changed))


def scored(*items: Item, predicted: str = "cardiology") -> Scored:
    n = len(items)
    return Scored(
        items=items,
        predicted=np.array([predicted] * n),
        confidence=np.linspace(0.5, 0.9, n),
        in_scope=np.linspace(0.1, 0.9, n),
        named=np.ones(n, dtype=bool),
        has_signal=np.ones(n, dtype=bool),
    )


@pytest.mark.parametrize(
    ("num_words", "bucket"),
    [
        (1, "1-5 words"),
        (5, "1-5 words"),
        (6, "6-15 words"),
        (40, "16-40 words"),
        (100, "41-100 words"),
        (101, "over 100 words"),
    ],
)
def test_length_buckets(num_words: int, bucket: str) -> None:
    found = figures.by_length(scored(item("word " * num_words)))
    assert [name for name, _ in found] == [bucket]


def test_validation_has_exam_vignettes_apart_and_no_strangers() -> None:
    exam = "CasiMedicos (MIR exam)"
    given = scored(
        item("a"),
        item("b", lang="fr", source="HPO-fr (templated)"),
        item("c", source=exam),
        item("d", lang="fr", source=exam),
        item("e", "out_of_scope", source="CLINC150 oos_val"),
    )
    found = {name: [i.id for i in group.items] for name, group in figures.validation_groups(given)}
    assert found == {
        "English": ["a"],
        "French (HPO)": ["b"],
        "exam vignettes, English": ["c"],
        "exam vignettes, French": ["d"],
    }
    assert [name for name, _ in figures.stranger_groups("validation", given)] == [
        "CLINC150 (validation)"
    ]


def test_far_questions_and_near_misses_are_strangers_apart() -> None:
    given = scored(
        item("a", "out_of_scope", kind="far"),
        item("b", "out_of_scope", kind="near_miss"),
        item("c", kind="plain"),
    )
    found = {name: len(group.items) for name, group in figures.stranger_groups("test", given)}
    assert found == {"far (test)": 1, "near misses (test)": 1}


def test_the_most_confident_errors_come_first_and_by_id() -> None:
    given = scored(item("a", "neurology"), item("b"), item("c", "oncology"))
    found = figures.most_confident_errors(given, 5)
    assert [(id_, truth) for id_, truth, _, _ in found] == [("c", "oncology"), ("a", "neurology")]


def test_a_copy_is_found_behind_case_accents_and_punctuation() -> None:
    folded = frozenset({fold("Qu'est-ce que l'eczéma ?")})
    kept, left_out = without_copies(
        [item("QU’EST CE QUE L’ECZEMA"), item("Est-ce de l'eczéma ?")], folded
    )
    assert [i.id for i in kept] == ["Est-ce de l'eczéma ?"]
    assert left_out == 1


def test_what_each_baseline_learns_from() -> None:
    given = [
        item("public"),
        item("ours", source="written"),
        item("term", kind="term"),
        item("stranger", "out_of_scope"),
    ]
    assert [i.id for i in training_of(PUBLIC, given)] == ["public"]
    assert [i.id for i in training_of(ALL_TEXTS, given)] == ["public", "ours", "term"]


@pytest.mark.parametrize(
    ("value", "bound", "is_least", "verdict"),
    [
        (0.85, 0.85, True, "reached"),
        (0.84, 0.85, True, "missed"),
        (0.05, 0.05, False, "reached"),
        (0.06, 0.05, False, "missed"),
        (0.06, None, False, "reported"),
        (None, 0.05, False, "not measured"),
    ],
)
def test_verdicts(value: float | None, bound: float | None, is_least: bool, verdict: str) -> None:
    estimate = Estimate(value, 0.0, 1.0, 10)
    assert Target("x", "y", estimate, bound, is_least).verdict == verdict


def test_numbers_have_their_interval() -> None:
    assert number(Estimate(0.5, 0.41234, 0.6, 10)) == "0.500 [0.412, 0.600]"
    assert number(Estimate(-0.0001, -0.02, 0.01, 10), 1, 100) == "0.0 [-2.0, 1.0]"
    assert number(Estimate(12.0, None, None, 1), 1) == "12.0"
    assert number(None) == "n/a"
