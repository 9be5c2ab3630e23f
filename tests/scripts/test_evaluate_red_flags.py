"""The figures of the red flags' report."""

import json

import pytest

from scripts.evaluate_red_flags import QUESTIONS, cases, main


def test_half_is_french_and_a_third_has_a_negation() -> None:
    questions = list(cases(QUESTIONS))
    for is_urgent in (True, False):
        chosen = [case for case in questions if case.is_urgent == is_urgent]
        french = sum(case.language == "fr" for case in chosen)
        negated = sum(case.has_negation for case in chosen)
        assert french / len(chosen) == pytest.approx(0.5, abs=0.02)
        assert negated / len(chosen) == pytest.approx(1 / 3, abs=0.02)
    assert len({case.text for case in questions}) == len(questions)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    result = json.loads(lines[-1])
    assert result["first_urgent"]["n"] == 150
    assert result["first_not_urgent"]["n"] == 300
    assert "| set first |" in "\n".join(lines)
