"""The report's template and the committed report say the same; figures stay where they belong."""

import re
from pathlib import Path

import pytest

from scripts.evaluation.figures import pooled, read_results
from scripts.evaluation.report import TEMPLATE, report_of, results_table
from tests.scripts.test_report_adapters import write_specialty

COMMITTED = Path(__file__).parents[3] / "docs" / "specialists.md"
EXPECTED = Path(__file__).with_name("small_report.md")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, gain in (("dermatology", True), ("cardiology", False)):
        write_specialty(tmp_path, name, gain=gain)
    return tmp_path / "evaluation"


def test_a_small_report_is_the_same_to_the_byte(folder: Path) -> None:
    text, plots = report_of(read_results(folder), "Made by hand.", 0)
    digests = re.compile(r"\b[0-9a-f]{16}\b")
    assert digests.sub("0" * 16, text) == EXPECTED.read_text(encoding="utf-8")
    assert [plot[:4] for plot in plots] == ["<svg"] * 2


def test_the_table_for_other_pages_is_the_reports(folder: Path) -> None:
    results = read_results(folder)
    assert results_table(results, pooled(results, 0)) in report_of(results, "", 0)[0]


def test_the_committed_report_has_the_templates_words() -> None:
    """Its results are not in the repository, so its figures cannot be made again here."""
    committed = COMMITTED.read_text(encoding="utf-8")
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    words = [line for line in lines if line and not re.search(r"\{[{%#]|^  \"|^\}", line)]
    assert len(words) > 15
    assert [line for line in words if line not in committed] == []
