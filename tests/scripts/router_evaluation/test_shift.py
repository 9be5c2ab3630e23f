"""The report of a router, source by source."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.router_evaluation import shift
from scripts.router_evaluation.shift import main
from tests.router.small_questions import OUT_OF_SCOPE, small_questions


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources of 20 questions, one of too few; no set of router/data."""
    folder = tmp_path / "data"
    folder.mkdir()
    inside = [q for q in small_questions(5) if q.specialty != OUT_OF_SCOPE and q.language == "en"]
    rows = [
        {
            **{"id": f"q{i}", "input": q.text, "output": "", "specialty": q.specialty},
            **{"source": source, "lang": "en", "split": split, "focus": q.text},
        }
        for i, (q, source, split) in enumerate(
            [(q, "one", "validation") for q in inside[:20]]
            + [(q, "two", "validation") for q in inside[20:40]]
            + [(q, "few", "validation") for q in inside[40:44]]
            + [(q, "one", "train") for q in inside[44:60]]
        )
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(shift, "UNSEEN", {})
    return folder


def run(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    assert main(list(args)) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def test_each_source_has_its_figures_and_the_gain_over_the_other(
    data: Path, tiny_router_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shift.md"
    same = str(tiny_router_dir)
    found = run(
        capsys, "--data", str(data), "--out", str(out), "--model", same, "--baseline", same
    )["sources"]
    assert set(found) == {"one, en", "two, en"}, "validation only, and no source of a few"
    for source in found.values():
        assert source["n"] == 20
        assert source["accuracy"][0] > 0.9
        assert source["gain"] == [0.0, 0.0, 0.0], "compared with itself"
        assert source["ece"] == source["baseline_ece"]
        assert abs(source["confidence"] - source["accuracy"][0]) <= source["ece"] + 1e-9
    text = out.read_text(encoding="utf-8")
    assert "| one, en | 20 |" in text
    assert str(tmp_path) not in text, "no path of this machine"
    assert not [q.text for q in small_questions(5) if q.text in text]


def test_without_validation_questions_it_is_refused(
    data: Path, tiny_router_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data / "rows.jsonl"
    file.write_text(file.read_text().replace('"validation"', '"train"'))
    out = tmp_path / "shift.md"
    assert main(["--data", str(data), "--out", str(out), "--model", str(tiny_router_dir)]) == 2
    assert "no question with split `validation`" in capsys.readouterr().err
    assert not out.exists()
