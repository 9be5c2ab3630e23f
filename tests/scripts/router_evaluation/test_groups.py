"""Which questions a row of the report counts."""

import pytest

from scripts.router_evaluation import groups
from tests.scripts.router_evaluation.small_scores import question, scored


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
    found = groups.by_length(scored(question("word " * num_words)))
    assert [name for name, _ in found] == [bucket]


def test_validation_has_exam_vignettes_apart_and_nothing_out_of_scope() -> None:
    exam = "CasiMedicos (MIR exam)"
    given = scored(
        question("a"),
        question("b", lang="fr", source="HPO-fr (templated)"),
        question("c", source=exam),
        question("d", lang="fr", source=exam),
        question("e", "out_of_scope", source="CLINC150 oos_val"),
    )
    found = {n: [q.id for q in group.questions] for n, group in groups.validation_groups(given)}
    assert found == {
        "English": ["a"],
        "French (HPO)": ["b"],
        "exam vignettes, English": ["c"],
        "exam vignettes, French": ["d"],
    }
    assert [name for name, _ in groups.out_of_scope_groups("validation", given)] == [
        "CLINC150 (validation)"
    ]


def test_far_questions_and_near_misses_are_groups_apart() -> None:
    given = scored(
        question("a", "out_of_scope", kind="far"),
        question("b", "out_of_scope", kind="near_miss"),
        question("c", kind="plain"),
    )
    found = {n: len(group.questions) for n, group in groups.out_of_scope_groups("test", given)}
    assert found == {"far (test)": 1, "near misses (test)": 1}


def test_a_group_is_shown_by_language_where_it_has_both() -> None:
    both = scored(question("a"), question("b", lang="fr"))
    english = scored(question("c"))
    found = groups.by_language([("both", both), ("english", english)])
    assert [name for name, _ in found] == ["both", "both, en", "both, fr", "english"]
