"""Errors in order of confidence, and verdicts on targets."""

import pytest

from scripts.router_evaluation import figures
from scripts.router_evaluation.metrics import Estimate
from scripts.router_evaluation.targets import RouterTarget
from tests.scripts.router_evaluation.small_scores import question, scored


def test_the_most_confident_errors_come_first_and_by_id() -> None:
    given = scored(question("a", "neurology"), question("b"), question("c", "oncology"))
    found = figures.most_confident_errors("test", given, 5)
    assert [(e.id, e.specialty) for e in found] == [("c", "oncology"), ("a", "neurology")]


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
    assert RouterTarget("x", "y", estimate, bound, is_least).verdict == verdict
