"""The conversations and phrasings that we wrote, and what the shipped router does with them."""

import json
from collections import Counter
from pathlib import Path

import pytest

from router.classifier import Classifier
from scripts.datasets.record import DataError
from scripts.datasets.yaml_file import read_yaml
from scripts.evaluate_router import main, read_figures
from scripts.router_evaluation import phrasings
from scripts.router_evaluation.phrasings import HALVES, conversation_turns, outcomes

MODEL = Path(__file__).resolve().parents[3] / "router" / "model"
LEAST = {"emergencies": 0.9, "abbreviations": 0.95, "shorthand": 0.8, "misspellings": 0.85}
LEAST |= {"denials": 0.8, "pasted": 0.7, "foreign": 0.95, "orders": 0.9}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("report") / "report.md"
    assert main(["--phrasings", "--out", str(out)]) == 0
    assert "| keep | held out |" in out.read_text(encoding="utf-8")
    found: dict[str, object] = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def shares(rows: object) -> dict[tuple[str, str], float]:
    assert isinstance(rows, list)
    return {(row["name"], row["half"]): row["right"] / row["n"] for row in rows}


def test_there_are_300_turns_of_each_half_in_both_languages() -> None:
    turns = list(conversation_turns())
    counted = Counter((turn.half, turn.language) for turn in turns)
    assert all(counted[half, language] >= 150 for half in HALVES for language in ("en", "fr"))
    assert sum(turn.kind == "switch" for turn in turns) >= 40
    halves = [{turn.turns[0] for turn in turns if turn.half == half} for half in HALVES]
    assert not halves[0] & halves[1]


def test_no_phrasing_is_in_both_halves() -> None:
    for kind, halves in read_yaml(phrasings.FOLDER / "phrasings.yaml").items():
        texts = [text for half in HALVES for listed in halves[half].values() for text in listed]
        assert len(texts) == len(set(texts)), kind


@pytest.mark.slow
def test_answers_keep_the_specialist_and_topics_change_it(figures: dict[str, object]) -> None:
    found = shares(figures["conversations"])
    assert found["keep", "held_out"] >= 0.9
    assert found["keep, after a right turn", "held_out"] >= 0.96
    assert found["switch", "held_out"] >= 0.8


@pytest.mark.slow
def test_phrasings_reach_their_specialist(figures: dict[str, object]) -> None:
    found = shares(figures["phrasings"])
    missed = {kind: found[kind, "held_out"] for kind, least in LEAST.items()}
    assert all(missed[kind] >= least for kind, least in LEAST.items()), missed


NAMED = {
    "neurology": (
        "Mon pere a fait un AVC, il ne parle plus|Mon père fait un AVC|AVC : que faire ?|un avc ?|"
        "Ma mère a eu un A.V.C. ce matin|symptômes d'un AVC|après son AVC il boite"
    ),
    "psychiatry": "Je veux mourir|je voudrais mourir|J'ai envie de mourir|I want to die",
    "cardiology": "HTA|J'ai une HTA|58M c/o CP rad to L arm|hypertention",
    "infectious_disease": "IST|symptômes d'une IST",
    "rheumatology_orthopedics": "No chest pain, no dyspnoea. Knee pain|artritis",
    "endocrinology": "diabtes",
}


@pytest.mark.parametrize("specialty", NAMED)
def test_phrasings_that_once_failed(specialty: str) -> None:
    texts = NAMED[specialty].split("|")
    found = outcomes(Classifier.load(MODEL), [[text] for text in texts])
    assert dict(zip(texts, found, strict=True)) == dict.fromkeys(texts, specialty)


def test_figures_of_before_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "before.json"
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="no conversations, phrasings in it"):
        read_figures(file, "--before", {*phrasings.SECTIONS})
