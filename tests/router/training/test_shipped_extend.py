"""Two specialties that the shipped router lacks, each from 40 questions that people would ask."""

from pathlib import Path

import pytest
import yaml

from router.classifier import Classifier
from router.policy import decide
from router.training.extend import MAX_WRONG, MIN_RECALL, Extension, extend
from router.training.trained import save

ROOT = Path(__file__).resolve().parents[3]
QUESTIONS = yaml.safe_load((ROOT / "tests" / "router" / "new_specialties.yaml").read_text("utf-8"))
MODEL = ROOT / "router" / "model"


@pytest.fixture(scope="module", params=sorted(QUESTIONS))
def extension(request: pytest.FixtureRequest) -> Extension:
    given = QUESTIONS[request.param]["given"]
    assert len(given) == 40
    return extend(MODEL, request.param, given)


@pytest.mark.slow
def test_40_questions_suffice_and_nobody_pays(extension: Extension, tmp_path: Path) -> None:
    assert extension.recall >= MIN_RECALL
    assert extension.num_needed == 0
    assert extension.harms == []
    num_old = len(extension.old_before.labels)
    assert extension.num_more_wrong <= MAX_WRONG * num_old
    save(extension.trained, tmp_path, date="2026-01-03", provenance={})
    classifier = Classifier.load(tmp_path)
    held_out = QUESTIONS[extension.label]["held_out"]
    found = [
        decide(c, thresholds=classifier.thresholds, adapters={}, base_languages=("en",)).specialty
        for c in classifier.classify([[question] for question in held_out])
    ]
    assert found.count(extension.label) / len(held_out) >= 0.5
    assert sum(name not in (None, extension.label) for name in found) <= len(held_out) / 4


@pytest.mark.slow
def test_the_thresholds_of_the_others_stay(extension: Extension) -> None:
    before = Classifier.load(MODEL).thresholds
    manifest = extension.trained.manifest
    assert manifest["thresholds"]["min_confidence"] == before.min_confidence
    assert manifest["label_thresholds"] == {extension.label: extension.threshold}
