"""Calibration by its definitions, and training from a small bilingual set to a working router."""

from pathlib import Path

import numpy as np
import pytest

from router.classifier import Classifier, softmax
from router.policy import Reason, decide
from router.training import (
    OUT_OF_SCOPE,
    Question,
    Recipe,
    best_threshold,
    fit_platt,
    fit_temperature,
    save,
    train,
)
from tests.router.small_questions import LABELS, small_questions


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered_from_overconfident_logits(true_temperature: float) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, size=(4000, 5))
    shares = softmax(logits)
    truth = np.array([generator.choice(5, p=row) for row in shares])
    found = fit_temperature(logits * true_temperature, truth, np.ones(4000))
    assert found == pytest.approx(true_temperature, rel=0.08)


def test_a_question_of_weight_zero_does_not_change_the_temperature() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(0, 2, size=(200, 3))
    truth = generator.integers(0, 3, size=200)
    weights = np.r_[np.ones(100), np.zeros(100)]
    whole = fit_temperature(logits, truth, weights)
    assert whole == pytest.approx(fit_temperature(logits[:100], truth[:100], np.ones(100)))
    assert whole != pytest.approx(fit_temperature(logits, truth, np.ones(200)), rel=1e-3)


def test_platt_recovers_the_sigmoid_that_drew_the_labels() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(0, 2, size=(8000, 2))
    chance = 1 / (1 + np.exp(-(0.8 * inputs[:, 0] + 0.3 * inputs[:, 1] - 1.0)))
    truth = generator.random(8000) < chance
    assert fit_platt(inputs, truth, np.ones(8000)) == pytest.approx((0.8, 0.3, -1.0), abs=0.1)


def test_the_threshold_has_the_lowest_cost() -> None:
    scores = np.array([0.1, 0.2, 0.6, 0.8])
    wrong = np.array([1.0, 1.0, 0.0, 0.0])
    cheap_abstention = best_threshold(scores, kept_cost=wrong, dropped_cost=np.full(4, 0.5))
    assert 0.2 < cheap_abstention <= 0.6
    dear_abstention = best_threshold(scores, kept_cost=wrong, dropped_cost=np.full(4, 2.0))
    assert dear_abstention <= 0.1


def test_a_small_bilingual_set_trains_a_router_that_routes(tmp_path: Path) -> None:
    training, calibration = small_questions(0), small_questions(1)
    trained = train(training, calibration, Recipe())
    version = save(trained, tmp_path, date="2026-01-02", provenance={"command": "none"})
    classifier = Classifier.load(tmp_path)
    assert classifier.version == version
    assert version.startswith("2026-01-02+")
    assert classifier.specialties == LABELS
    held_out = small_questions(2)
    inside = [q for q in held_out if q.specialty != OUT_OF_SCOPE]
    routes = [
        decide(
            classified,
            thresholds=classifier.thresholds,
            adapters={label: label for label in LABELS},
            base_languages=("en", "fr"),
        )
        for classified in classifier.classify([[q.text] for q in held_out])
    ]
    by_question = dict(zip(held_out, routes, strict=True))
    assert np.mean([by_question[q].specialty == q.specialty for q in inside]) > 0.9
    strangers = [r for q, r in by_question.items() if q.specialty == OUT_OF_SCOPE]
    assert np.mean([r.reason is Reason.OUT_OF_SCOPE for r in strangers]) > 0.8
    assert np.mean([r.language == q.language for q, r in by_question.items()]) > 0.9


def test_the_seed_decides_the_bytes(tmp_path: Path) -> None:
    sets = small_questions(0), small_questions(1)
    versions = [
        save(train(*sets, Recipe(seed=seed)), tmp_path / name, date="d", provenance={})
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert versions[0] == versions[1]
    assert versions[0] != versions[2]
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_the_artefact_holds_no_question_text(tmp_path: Path) -> None:
    marker = Question("zyzzyva quokka xylophone", "neurology", "en", "written")
    training = [*small_questions(0), marker, marker]
    save(train(training, small_questions(1), Recipe()), tmp_path, date="d", provenance={})
    for file in tmp_path.iterdir():
        for word in (b"zyzzyva", b"quokka"):
            assert word not in file.read_bytes()


def test_unknown_and_missing_labels_are_named() -> None:
    questions = small_questions(0)
    astrology = Question("my stars", "astrology", "en", "x")
    with pytest.raises(
        ValueError, match=r"training set: unknown label\(s\) astrology;.*cardiology"
    ):
        train([*questions, astrology], questions, Recipe())
    without = [q for q in questions if q.specialty != "oncology"]
    with pytest.raises(ValueError, match="training set: no question for oncology"):
        train(without, questions, Recipe())
    inside = [q for q in questions if q.specialty != OUT_OF_SCOPE]
    with pytest.raises(ValueError, match="calibration set: no out_of_scope question"):
        train(questions, inside, Recipe())
