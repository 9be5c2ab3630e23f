"""Metrics of a router over arrays, each with n and a 95 % percentile bootstrap interval.

Q questions, S specialties, R resamples. A metric that depends on counts alone (a share, macro-F1)
is resampled by drawing the counts: the multinomial over a table's cells is what drawing questions
with replacement gives, and it is quick enough for 10,000 resamples. Metrics that need an order
(calibration error, selective accuracy, AUROC) draw questions, 1,000 times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.evaluation.bootstrap import NUM_RESAMPLES, interval

NUM_EXPENSIVE = 1000  # resamples of a metric that needs an order
NUM_BINS = 15
MIN_FOR_ECE = 500
RECALL = 0.95  # of in-scope questions, where strangers are counted
Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """`value` None: there was nothing to measure (`n` 0, or too few). `n` counts questions."""

    value: float | None
    low: float | None
    high: float | None
    n: int


def absent(n: int = 0) -> Estimate:
    return Estimate(None, None, None, n)


def estimate(value: float, resampled: Array, n: int) -> Estimate:
    """Resamples in which the metric is not defined (NaN) do not count."""
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return absent(n)
    low, high = interval(defined)
    return Estimate(float(value), low, high, n)


def share(hits: Bools, *, seed: int) -> Estimate:
    """Mean of hits (Q,)."""
    n = len(hits)
    if not n:
        return absent()
    value = float(hits.mean())
    drawn = np.random.default_rng(seed).binomial(n, value, size=NUM_RESAMPLES)
    return estimate(value, drawn / n, n)


def share_within(hits: Bools, within: Bools, *, seed: int) -> Estimate:
    """Mean of hits (Q,) where `within` (Q,) holds; `n` counts those. Both are resampled."""
    inner = int(within.sum())
    if not inner:
        return absent()
    counts = [int((hits & within).sum()), int((~hits & within).sum()), int((~within).sum())]
    drawn = _multinomial(np.array(counts), seed)
    with np.errstate(invalid="ignore"):
        resampled = drawn[:, 0] / (drawn[:, 0] + drawn[:, 1])
    return estimate(counts[0] / inner, resampled, inner)


def difference(first: Bools, second: Bools, *, seed: int) -> Estimate:
    """Mean of first minus mean of second, paired by question."""
    n = len(first)
    if not n:
        return absent()
    change = first.astype(int) - second.astype(int)
    counts = np.array([int((change == value).sum()) for value in (-1, 0, 1)])
    drawn = _multinomial(counts, seed)
    return estimate(float(change.mean()), (drawn[:, 2] - drawn[:, 0]) / n, n)


def confusion(truth: Array, predicted: Array, labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """How often each label (row) was given each label (column), (S, S)."""
    row = {label: number for number, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for true, given in zip(truth.tolist(), predicted.tolist(), strict=True):
        table[row[true], row[given]] += 1
    return table


def f1_scores(tables: Array) -> Floats:
    """F1 of each label from confusion matrices (..., S, S); NaN for a label that is nowhere."""
    hits = np.diagonal(tables, axis1=-2, axis2=-1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * hits / (tables.sum(axis=-1) + tables.sum(axis=-2)))


def macro_f1(truth: Array, predicted: Array, *, seed: int) -> Estimate:
    """Mean F1 over the labels that the truth holds; in a resample, over those of them in it."""
    n = len(truth)
    if not n:
        return absent()
    labels = sorted(set(truth.tolist()) | set(predicted.tolist()))
    table = confusion(truth, predicted, labels)
    asked = table.sum(axis=1) > 0
    drawn = _multinomial(table.ravel(), seed).reshape(-1, *table.shape)
    resampled = np.nanmean(f1_scores(drawn)[:, asked], axis=1)
    return estimate(float(np.mean(f1_scores(table)[asked])), resampled, n)


def _multinomial(counts: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Resampled counts of cells, (R, cells)."""
    total = int(counts.sum())
    return np.random.default_rng(seed).multinomial(total, counts / total, size=NUM_RESAMPLES)


def bins(confidence: Array, correct: Array, num_bins: int = NUM_BINS) -> Floats:
    """Bins of equal mass in ascending confidence, (num_bins, 3): mean confidence, accuracy, n."""
    parts = np.array_split(np.argsort(confidence, kind="stable"), num_bins)
    rows = [(confidence[p].mean(), correct[p].mean(), len(p)) for p in parts if len(p)]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def calibration_error(confidence: Array, correct: Array) -> float:
    """Expected calibration error over NUM_BINS bins of equal mass."""
    rows = bins(confidence, correct)
    return float(np.abs(rows[:, 0] - rows[:, 1]) @ rows[:, 2] / len(confidence))


def ece(confidence: Array, correct: Bools, *, seed: int) -> Estimate:
    """Absent below MIN_FOR_ECE questions: the bins would be too small to say anything."""
    if len(confidence) < MIN_FOR_ECE:
        return absent(len(confidence))
    return _drawn(calibration_error, confidence, correct, seed=seed)


def accuracy_at(confidence: Array, correct: Array, coverage: float) -> float:
    """Accuracy on the most confident share of the questions."""
    kept = max(1, round(coverage * len(confidence)))
    return float(correct[np.argsort(-confidence, kind="stable")[:kept]].mean())


def selective_accuracy(
    confidence: Array, correct: Bools, coverage: float, *, seed: int
) -> Estimate:
    if not len(confidence):
        return absent()
    return _drawn(lambda c, r: accuracy_at(c, r, coverage), confidence, correct, seed=seed)


def _drawn(
    statistic: Callable[[Array, Array], float], confidence: Array, correct: Array, *, seed: int
) -> Estimate:
    generator, n = np.random.default_rng(seed), len(confidence)
    resampled = []
    for _ in range(NUM_EXPENSIVE):
        picked = generator.integers(n, size=n)
        resampled.append(statistic(confidence[picked], correct[picked]))
    return estimate(statistic(confidence, correct), np.array(resampled), n)


def area(inside: Array, outside: Array) -> float:
    """AUROC: how probably an in-scope score is above a stranger's; a tie counts half."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, side="left")
    up_to = np.searchsorted(ordered, inside, side="right")
    return float((below + up_to).mean() / 2 / len(outside))


def false_positives(inside: Array, outside: Array) -> float:
    """Share of strangers at or above the threshold that keeps RECALL of the in-scope questions."""
    ordered = np.sort(inside)
    threshold = ordered[int((1 - RECALL) * len(ordered) + 1e-9)]
    return float((outside >= threshold).mean())


def between(
    statistic: Callable[[Array, Array], float], inside: Array, outside: Array, *, seed: int
) -> Estimate:
    """`area` or `false_positives`; each side is resampled by itself. `n` counts strangers."""
    if not len(inside) or not len(outside):
        return absent(len(outside))
    generator = np.random.default_rng(seed)
    resampled = [
        statistic(
            inside[generator.integers(len(inside), size=len(inside))],
            outside[generator.integers(len(outside), size=len(outside))],
        )
        for _ in range(NUM_EXPENSIVE)
    ]
    return estimate(statistic(inside, outside), np.array(resampled), len(outside))


def quantile(values: Array, percent: float, *, seed: int) -> Estimate:
    """A percentile of measured values, such as times."""
    if not len(values):
        return absent()
    generator, n = np.random.default_rng(seed), len(values)
    drawn = values[generator.integers(n, size=(NUM_EXPENSIVE, n))]
    resampled = np.percentile(drawn, percent, axis=1)
    return estimate(float(np.percentile(values, percent)), resampled, n)
