"""The page that is rendered from figures: docs/router.md is the page of docs/router.json."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from scripts.evaluate_router import main, plot_files, read_figures
from scripts.router_evaluation.metrics import Estimate
from scripts.router_evaluation.report import cell, number, render, short, spread, to_json

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return read_figures(DOCS / "router.json")


def rendered(figures: dict[str, Any], notes: str = "") -> str:
    plots = {plot: path.name for plot, path in plot_files(DOCS / "router.md").items()}
    return render(figures, plots, notes)


def test_the_committed_page_is_rendered_from_the_committed_figures(tmp_path: Path) -> None:
    out = tmp_path / "router.md"
    given = {"figures": DOCS / "router.json", "notes": DOCS / "router_notes.md", "out": out}
    assert main([word for name, path in given.items() for word in (f"--{name}", str(path))]) == 0
    assert out.read_bytes() == (DOCS / "router.md").read_bytes()


def test_figures_survive_their_file(figures: dict[str, Any]) -> None:
    assert json.loads(to_json(figures)) == figures
    assert to_json(figures) == (DOCS / "router.json").read_text(encoding="utf-8")


def test_what_was_not_measured_is_said(figures: dict[str, Any]) -> None:
    nothing = asdict(Estimate(None, None, None, 0))
    bare = rendered({**figures, "strict": None, "follow_ups": nothing})
    assert "Not measured in this run (`--strict_model`, `--strict_data`)." in bare
    assert "### Strict" not in bare
    assert "Of 0 follow-ups" in bare
    assert "n/a are recognised" in bare


def test_sources_held_out_of_the_shipped_artefact_have_their_table(figures: dict[str, Any]) -> None:
    routing = {**figures["routing"], "held-out sources": figures["routing"]["source"][:1]}
    assert "Sources that this artefact was not trained on" not in rendered(figures)
    shown = rendered({**figures, "routing": routing})
    assert shown.count(f"| {figures['routing']['source'][0]['group']} | ") == 2
    empty = {**figures["routing"], "test": []}
    assert "### Test set\n\nNo question.\n\n### By source" in rendered(
        {**figures, "routing": empty}
    )


def test_numbers_have_their_interval() -> None:
    assert number(asdict(Estimate(0.5, 0.41234, 0.6, 10))) == "0.500 [0.412, 0.600]"
    assert number(asdict(Estimate(-0.0001, -0.02, 0.01, 10)), 1, 100) == "0.0 [-2.0, 1.0]"
    assert number(asdict(Estimate(12.0, None, None, 1)), 1) == "12.0"
    assert number(None) == "n/a"


def test_cells() -> None:
    assert cell("a|b") == "a\\|b"
    assert spread(asdict(Estimate(95.2, 91.8, 104.2, 5)), 0) == "95 (range 92 to 104)"
    assert short(["cardiology", "dermatology"]) == ["card", "derm"]
    assert short(["cardiology", "cardiac"]) == ["cardiology", "cardiac"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("no json", "not JSON"), ("{}", "no made_by, protocol, targets in it"), ("3", "not JSON")],
)
def test_a_file_that_holds_no_figures_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    file = tmp_path / "figures.json"
    file.write_text(content, encoding="utf-8")
    assert main(["--figures", str(file), "--out", str(tmp_path / "router.md")]) == 2
    assert message in capsys.readouterr().err
