"""Calibration by its definitions: temperature, Platt, costs, folds, and a split drawn by us."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from router.head import softmax
from router.training import head
from router.training.calibration import best_threshold, fit_platt, fit_temperature
from router.training.examples import OUT_OF_SCOPE, Recipe
from router.training.feature_set import FeatureSet, restored, stored
from router.training.head import fit_head, recalls

LABELS = ("a", "b", "c", "d")
NUM_BINS = 15


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


def drawn(seed: int, num_each: int = 250, *, width: int = 12) -> FeatureSet:
    """Overlapping clouds around a centre for each label and one for what is out of scope."""
    spread = 0.7 * (12 / width) ** 0.5  # as far apart, however wide
    centres = np.random.default_rng(7).normal(0, spread, size=(len(LABELS) + 1, width))
    generator = np.random.default_rng(seed)
    names = np.array([*LABELS, OUT_OF_SCOPE])
    which = np.repeat(np.arange(len(names)), [*[num_each] * len(LABELS), 2 * num_each])
    rows = centres[which] + generator.normal(0, 1, size=(len(which), width))
    return FeatureSet(
        features=rows.astype(np.float32),
        labels=names[which],
        weights=np.ones(len(which)),
        folds=generator.integers(0, 5, size=len(which)),
        is_validation=np.zeros(len(which), dtype=bool),
    )


def calibration_error(scores: npt.NDArray[np.float64], hits: npt.NDArray[np.bool_]) -> float:
    """Expected calibration error over bins of equal mass."""
    order = scores.argsort()
    return float(
        sum(
            len(part) / len(scores) * abs(scores[part].mean() - hits[part].mean())
            for part in np.array_split(order, NUM_BINS)
        )
    )


def test_probabilities_are_calibrated_on_a_fresh_split() -> None:
    head = fit_head(drawn(0), LABELS, Recipe()).head
    fresh = drawn(1, 1000)
    logits, scopes = head.logits(fresh.features)
    probabilities = head.probabilities(logits)
    inside = fresh.labels != OUT_OF_SCOPE
    hits = np.array(LABELS)[probabilities.argmax(axis=1)] == fresh.labels
    assert 0.6 < hits[inside].mean() < 0.95  # neither hopeless nor separable
    assert calibration_error(probabilities.max(axis=1)[inside], hits[inside]) < 0.03
    in_scope = head.in_scope(scopes, probabilities)
    balanced = np.r_[np.flatnonzero(inside)[::2], np.flatnonzero(~inside)]  # 2000 of each
    assert calibration_error(in_scope[balanced], inside[balanced]) < 0.04
    too_sharp = softmax(logits / (head.temperature / 4)).max(axis=1)
    assert calibration_error(too_sharp[inside], hits[inside]) > 0.05  # the measure can tell


def test_the_temperature_comes_from_cross_validation() -> None:
    """Few examples of many features: on its own examples the head looks surer than it is."""
    few = drawn(0, 25, width=60)
    fitted = fit_head(few, LABELS, Recipe(head_c=1.0))
    inside = few.pick(few.labels != OUT_OF_SCOPE)
    truth = np.array([LABELS.index(name) for name in inside.labels])
    logits, _ = fitted.head.logits(inside.features)
    naive = fit_temperature(logits.astype(np.float64), truth, inside.weights)
    assert fitted.head.temperature > 2 * naive


def test_a_dearer_mistake_raises_the_threshold() -> None:
    examples = drawn(0)
    plain = fit_head(examples, LABELS, Recipe()).thresholds
    careful = fit_head(examples, LABELS, Recipe(wrong_cost=4.0)).thresholds
    welcoming = fit_head(examples, LABELS, Recipe(refuse_cost=8.0)).thresholds
    assert careful["min_confidence"] > plain["min_confidence"]
    assert welcoming["min_in_scope"] < plain["min_in_scope"]
    assert all(0 <= value <= 1 for value in plain.values())


def test_folds_are_held_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fold's logits come from a head that saw none of it."""
    examples = drawn(0, 30)
    seen: list[set[int]] = []
    fit = head._fit

    def spy(used: FeatureSet, labels: tuple[str, ...], recipe: Recipe) -> object:
        seen.append(set(used.folds.tolist()))
        return fit(used, labels, recipe)

    monkeypatch.setattr(head, "_fit", spy)
    fit_head(examples, LABELS, Recipe())
    everything = set(range(5))
    assert seen == [*(everything - {fold} for fold in range(5)), everything]


def test_validation_decides_nothing() -> None:
    examples, others = drawn(0, 60), drawn(5, 60)
    shuffled = dataclasses.replace(
        others, labels=others.labels[::-1], is_validation=np.ones(len(others.labels), dtype=bool)
    )
    alone = fit_head(examples, LABELS, Recipe())
    beside = fit_head(examples.joined(shuffled), LABELS, Recipe())
    assert np.array_equal(alone.head.specialty, beside.head.specialty)
    assert alone.thresholds == beside.thresholds
    assert alone.head.temperature == beside.head.temperature


def test_recall_counts_validation_alone() -> None:
    examples, others = drawn(0, 60), drawn(5, 60)
    head = fit_head(examples, LABELS, Recipe()).head
    validation = dataclasses.replace(
        others, is_validation=np.ones(len(others.labels), dtype=bool)
    ).pick(others.labels != "d")
    found = recalls(head, examples.joined(validation), LABELS)
    assert set(found) == {"a", "b", "c"}  # "d" has no validation example
    logits, _ = head.logits(validation.features)
    tops = np.array(LABELS)[logits.argmax(axis=1)]
    assert found["a"] == pytest.approx((tops[validation.labels == "a"] == "a").mean())


def test_what_cannot_be_fitted_is_named() -> None:
    examples = drawn(0, 30)
    with pytest.raises(ValueError, match="no training question for b"):
        fit_head(examples.pick(examples.labels != "b"), LABELS, Recipe())
    with pytest.raises(ValueError, match="no training question for out_of_scope"):
        fit_head(examples.pick(examples.labels != OUT_OF_SCOPE), LABELS, Recipe())
    folds = np.where(examples.labels == "b", 3, examples.folds)
    with pytest.raises(ValueError, match="fold 3: a label has too few questions"):
        fit_head(dataclasses.replace(examples, folds=folds), LABELS, Recipe())


def test_stored_features_are_a_byte_each_and_at_most_half_a_step_off() -> None:
    given = dataclasses.replace(drawn(0, 40), weights=np.random.default_rng(0).uniform(0.1, 5, 240))
    given.features[:, 3] = 0.0  # a column without spread
    arrays = stored(given, LABELS)
    assert arrays["codes"].dtype == np.int8
    assert {array.dtype.kind for array in arrays.values()} <= set("fiub")  # no text
    found = restored(arrays, LABELS)
    error = np.abs(found.features - given.features)
    assert (error <= arrays["scales"] * 0.5001).all()
    assert np.abs(given.features).max(axis=0) == pytest.approx(
        127 * arrays["scales"], rel=1e-3, abs=1e-4
    )
    assert (found.labels == given.labels).all()
    assert (found.folds == given.folds).all()
    assert (found.is_validation == given.is_validation).all()
    assert found.weights == pytest.approx(given.weights, rel=1e-3)
    again = stored(found, LABELS)
    assert (again["codes"] == arrays["codes"]).all()  # what is stored is stored alike


def test_the_same_examples_give_the_same_head() -> None:
    one, other = (fit_head(drawn(0, 60), LABELS, Recipe()) for _ in range(2))
    assert np.array_equal(one.head.specialty, other.head.specialty)
    assert (one.thresholds, one.report) == (other.thresholds, other.report)
    assert one.head.scope_scale == other.head.scope_scale
