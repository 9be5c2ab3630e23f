"""Texts composed of diseases and their findings."""

from collections import Counter
from pathlib import Path

import pytest

from scripts.datasets.record import DataError
from scripts.router.cases import LANGUAGES, STYLES, from_cases, from_terms, read_cases

SHIPPED = Path(__file__).resolve().parents[3] / "router" / "data" / "written_cases.txt.bz2"
LINE = "gout|goutte|hot toe; crystals|orteil chaud; cristaux|colchicine|colchicine"


def test_the_shipped_cases_cover_each_specialty_in_both_languages() -> None:
    cases = read_cases(SHIPPED)
    counted = Counter((case.specialty, case.lang) for case in cases)
    assert len(counted) == 14 * len(LANGUAGES)
    assert min(counted.values()) >= 15
    assert max(Counter(case.group for case in cases).values()) == 2, "a line is one group"


@pytest.mark.parametrize("style", STYLES)
def test_each_style_fills_its_frames(style: str) -> None:
    cases = [case for case in read_cases(SHIPPED) if case.specialty == "ophthalmology"]
    drawn = list(from_cases(cases, {style: 12}, seed=1))
    texts = [text for _, _, text in drawn]
    assert len(set(texts)) > 10 * len(cases)
    assert not [text for text in texts if "{" in text or "}" in text]
    assert drawn == list(from_cases(cases, {style: 12}, seed=1)), "the seed decides"
    assert texts != [text for _, _, text in from_cases(cases, {style: 12}, seed=2)]


def test_a_vignette_names_findings_and_not_the_disease() -> None:
    for case, _, text in from_cases(read_cases(SHIPPED)[:40], {"vignette": 3}, seed=0):
        assert any(finding.lower() in text.lower() for finding in case.findings)


def test_terms_of_one_specialty_stand_for_findings() -> None:
    terms = {("neurology", "fr"): [f"signe {i}" for i in range(9)], ("oncology", "en"): ["one"]}
    drawn = list(from_terms(terms, 5, seed=0))
    assert [case.specialty for case, _, _ in drawn] == ["neurology"] * 5, "one term is too few"
    assert all("signe" in text for _, _, text in drawn)


@pytest.mark.parametrize(
    "content", [LINE, f"# x\n{LINE}|more", "# x\nname|nom|a|b|c", "# x\na|b||d|e|f", "# x\n\n"]
)
def test_a_malformed_line_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "cases.txt").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"cases\.txt, line \d: expected six parts"):
        read_cases(tmp_path / "cases.txt")
