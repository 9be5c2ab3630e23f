"""Metrics against values worked out by hand, and what must hold of any input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.router_evaluation import metrics as metrics

LABELS = ["a", "b", "c"]
TRUTH = np.array(["a", "a", "a", "b", "b", "c"])
GIVEN = np.array(["a", "a", "b", "b", "c", "c"])
labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1)
scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_a_share_has_the_interval_of_resampled_questions() -> None:
    hits = np.array([True] * 30 + [False] * 10)
    found = metrics.share(hits, seed=1)
    assert (found.value, found.n) == (0.75, 40)
    drawn = np.random.default_rng(5).choice(hits, size=(10_000, 40)).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.026)  # one question of 40 is 0.025
    assert found.high == pytest.approx(high, abs=0.026)


def test_a_share_within_a_part_counts_that_part() -> None:
    hits = np.array([True, True, False, True, False])
    within = np.array([True, True, True, False, False])
    found = metrics.share_within(hits, within, seed=0)
    assert found.value == pytest.approx(2 / 3)
    assert found.n == 3


def test_a_difference_is_paired() -> None:
    first, second = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert metrics.difference(first, second, seed=0).value == 0
    same = metrics.difference(first, first, seed=0)
    assert (same.value, same.low, same.high) == (0, 0, 0)  # unpaired draws would differ
    assert metrics.difference(first, ~first | first, seed=0).value == -0.5


def test_confusion_has_the_truth_in_rows() -> None:
    table = metrics.confusion(TRUTH, GIVEN, LABELS)
    assert table.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_macro_f1_by_hand() -> None:
    # a: 2 * 2 / (2 + 3); b: 2 * 1 / (2 + 2); c: 2 * 1 / (2 + 1)
    found = metrics.macro_f1(TRUTH, GIVEN, seed=0)
    assert found.value == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.65 < found.high


@settings(deadline=None, max_examples=25)
@given(labels)
def test_macro_f1_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import f1_score

    truth, given_ = (np.array(column) for column in zip(*pairs, strict=True))
    expected = f1_score(truth, given_, average="macro", labels=sorted(set(truth)), zero_division=0)
    assert metrics.macro_f1(truth, given_, seed=0).value == pytest.approx(expected)


def test_calibration_error_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    confidence = np.array([0.9, 0.8, 0.3, 0.1])
    correct = np.array([True, True, True, False])
    rows = metrics.bins(confidence, correct, 2)
    assert rows == pytest.approx(np.array([[0.2, 0.5, 2], [0.85, 1.0, 2]]))
    monkeypatch.setattr(metrics.bins, "__defaults__", (2,))
    assert metrics.calibration_error(confidence, correct) == pytest.approx((0.3 + 0.15) / 2)


def test_a_small_set_has_no_calibration_error() -> None:
    confidence = np.full(499, 0.5)
    assert metrics.ece(confidence, confidence > 0, seed=0) == metrics.absent(499)


def test_perfect_calibration_has_a_small_error() -> None:
    generator = np.random.default_rng(0)
    confidence = generator.uniform(size=3000)
    correct = generator.uniform(size=3000) < confidence
    honest = metrics.calibration_error(confidence, correct)
    boastful = metrics.calibration_error(np.sqrt(confidence), correct)
    assert honest < 0.05 < 0.1 < boastful


def test_accuracy_at_a_coverage_keeps_the_most_confident() -> None:
    confidence = np.array([0.2, 0.9, 0.5, 0.7])
    correct = np.array([False, True, False, True])
    assert metrics.accuracy_at(confidence, correct, 0.5) == 1.0
    assert metrics.accuracy_at(confidence, correct, 0.75) == pytest.approx(2 / 3)
    assert metrics.accuracy_at(confidence, correct, 1.0) == 0.5
    assert metrics.accuracy_at(confidence, correct, 0.01) == 1.0  # one question at least


def test_area_by_hand() -> None:
    # 0.9 beats both strangers, 0.4 beats one and ties with the other.
    assert metrics.area(np.array([0.9, 0.4]), np.array([0.4, 0.1])) == pytest.approx(3.5 / 4)


@given(scores, scores)
def test_area_is_the_share_of_pairs_and_turns_around(
    inside: list[float], outside: list[float]
) -> None:
    first, second = np.array(inside), np.array(outside)
    above = first[:, None] > second
    expected = (above + (first[:, None] == second) / 2).mean()
    assert metrics.area(first, second) == pytest.approx(expected)
    assert metrics.area(second, first) == pytest.approx(1 - expected)


def test_false_positives_at_a_threshold_that_keeps_95_percent() -> None:
    inside = np.arange(100) / 100  # 0.05 keeps 95 of 100
    assert metrics.false_positives(inside, np.array([0.04, 0.05, 0.5, 0.0])) == 0.5


@given(scores, scores)
def test_at_least_95_percent_of_the_in_scope_questions_are_kept(
    inside: list[float], outside: list[float]
) -> None:
    first = np.array(inside)
    assert metrics.false_positives(first, first) >= metrics.RECALL - 1e-9
    assert 0 <= metrics.false_positives(first, np.array(outside)) <= 1


def test_both_sides_of_an_area_are_resampled() -> None:
    generator = np.random.default_rng(3)
    inside, outside = generator.normal(1, 1, 200), generator.normal(0, 1, 50)
    found = metrics.between(metrics.area, inside, outside, seed=0)
    assert found.n == 50
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert 0.08 < found.high - found.low < 0.25


def test_a_quantile_of_times() -> None:
    found = metrics.quantile(np.arange(101.0), 95, seed=0)
    assert found.value == 95
    assert found.low is not None
    assert 85 < found.low < 95


def test_a_single_question_has_an_interval_without_width() -> None:
    one, other = np.array([True]), np.array([0.5])
    assert metrics.share(one, seed=0) == metrics.Estimate(1.0, 1.0, 1.0, 1)
    assert metrics.share_within(one, one, seed=0) == metrics.Estimate(1.0, 1.0, 1.0, 1)
    found = metrics.between(metrics.area, other, np.array([0.5, 0.1]), seed=0)
    assert found == metrics.Estimate(0.75, None, None, 2)


def test_resamples_without_a_sure_question_do_not_count() -> None:
    within = np.array([True] + [False] * 4)  # no resample of a third of them has the first
    found = metrics.share_within(np.ones(5, dtype=bool), within, seed=0)
    assert found == metrics.Estimate(1.0, 1.0, 1.0, 1)


def test_repeats_have_their_range() -> None:
    assert metrics.repeats([3.0, 1.0, 2.0]) == metrics.Estimate(2.0, 1.0, 3.0, 3)


def test_the_same_seed_gives_the_same_interval() -> None:
    hits = np.arange(50) % 3 == 0
    assert metrics.share(hits, seed=4) == metrics.share(hits, seed=4)
    assert metrics.macro_f1(TRUTH, GIVEN, seed=4) == metrics.macro_f1(TRUTH, GIVEN, seed=4)


def test_nothing_measured_is_said() -> None:
    none, flags = np.array([]), np.array([], dtype=bool)
    assert metrics.share(flags, seed=0) == metrics.absent()
    assert metrics.share_within(np.array([True]), np.array([False]), seed=0) == metrics.absent()
    assert metrics.difference(flags, flags, seed=0) == metrics.absent()
    assert metrics.macro_f1(none, none, seed=0) == metrics.absent()
    assert metrics.selective_accuracy(none, flags, 0.5, seed=0) == metrics.absent()
    assert metrics.between(metrics.area, none, np.array([0.5]), seed=0) == metrics.absent(1)
    assert metrics.quantile(none, 50, seed=0) == metrics.absent()
