"""Copies of training texts are found, and each baseline has its own training texts."""

from scripts.router_evaluation.baselines import ALL_TEXTS, PUBLIC, training_of
from scripts.router_evaluation.questions import fold, without_copies
from tests.scripts.router_evaluation.small_scores import question


def test_a_copy_is_found_behind_case_accents_and_punctuation() -> None:
    folded = frozenset({fold("Qu'est-ce que l'eczéma ?")})
    kept, left_out = without_copies(
        [question("QU’EST CE QUE L’ECZEMA"), question("Est-ce de l'eczéma ?")], folded
    )
    assert [q.id for q in kept] == ["Est-ce de l'eczéma ?"]
    assert left_out == 1


def test_what_each_baseline_learns_from() -> None:
    given = [
        question("public"),
        question("ours", source="written"),
        question("term", kind="term"),
        question("outside", "out_of_scope"),
    ]
    assert [q.id for q in training_of(PUBLIC, given)] == ["public"]
    assert [q.id for q in training_of(ALL_TEXTS, given)] == ["public", "ours", "term"]
