"""Metrics of a router over arrays, each with n and a 95 % interval.

Intervals are percentile bootstraps over questions (Efron and Tibshirani 1993, chapter 13), by
scipy.stats.bootstrap. Expected calibration error and selective accuracy are our own, since neither
scikit-learn nor SciPy has them; so are the F1 scores of many confusion matrices at once, which
10,000 resamples need. Shapes: Q questions, S specialties, R resamples.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

NUM_RESAMPLES = 10_000
NUM_EXPENSIVE = 1000  # resamples of a metric that needs an order
BATCH = 250  # resamples computed at once: bounds the memory
NUM_BINS = 15
MIN_FOR_ECE = 500
RECALL = 0.95  # of in-scope questions, where false positives are counted
Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Statistic = Callable[[Array, Array], float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value of `n` questions and the middle 95 % of its resamples.

    `value` is None where nothing was measured: `n` is 0 or too small.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def absent(n: int = 0) -> Estimate:
    return Estimate(None, None, None, n)


def share(hits: Bools, *, seed: int) -> Estimate:
    """Return the mean of hits (Q,)."""
    return _bootstrap(np.mean, [hits.astype(np.float64)], len(hits), seed)


def difference(first: Bools, second: Bools, *, seed: int) -> Estimate:
    """Return the mean of first (Q,) minus the mean of second (Q,), paired by question."""
    return _bootstrap(np.mean, [first.astype(np.float64) - second], len(first), seed)


def share_within(hits: Bools, within: Bools, *, seed: int) -> Estimate:
    """Return the mean of hits (Q,) where `within` (Q,) holds; `n` counts those.

    All questions are resampled, so the number of those within varies too.
    """

    def ratio(kept: Array, inside: Array, axis: int = -1) -> Array:
        with np.errstate(invalid="ignore"):
            return np.asarray(kept.sum(axis=axis) / inside.sum(axis=axis))

    return _bootstrap(ratio, [hits & within, within], int(within.sum()), seed, is_paired=True)


def quantile(values: Floats, percent: float, *, seed: int) -> Estimate:
    """Return a percentile of measured values (N,), such as times."""

    def percentile(drawn: Array, axis: int = -1) -> Array:
        return np.asarray(np.percentile(drawn, percent, axis=axis))

    return _bootstrap(percentile, [values], len(values), seed, NUM_EXPENSIVE)


def between(statistic: Statistic, inside: Floats, outside: Floats, *, seed: int) -> Estimate:
    """Return `area` or `false_positives`; each side is resampled on its own.

    `n` counts the out-of-scope questions.
    """
    return _bootstrap(statistic, [inside, outside], len(outside), seed, NUM_EXPENSIVE)


def ece(confidence: Floats, correct: Bools, *, seed: int) -> Estimate:
    """Return the expected calibration error; absent below MIN_FOR_ECE, where bins are too small."""
    n = len(confidence)
    if n < MIN_FOR_ECE:
        return absent(n)
    samples = [confidence, correct]
    return _bootstrap(calibration_error, samples, n, seed, NUM_EXPENSIVE, is_paired=True)


def selective_accuracy(
    confidence: Floats, correct: Bools, coverage: float, *, seed: int
) -> Estimate:
    """Return the accuracy on the most confident share of the questions."""

    def statistic(values: Array, hits: Array) -> float:
        return accuracy_at(values, hits, coverage)

    samples, n = [confidence, correct], len(confidence)
    return _bootstrap(statistic, samples, n, seed, NUM_EXPENSIVE, is_paired=True)


def _bootstrap(
    statistic: Callable[..., Any],
    samples: Sequence[Array],
    n: int,
    seed: int,
    num_resamples: int | None = None,
    *,
    is_paired: bool = False,
) -> Estimate:
    """Return the statistic of the samples with its percentile bootstrap interval.

    Resamples in which the statistic is not defined (NaN) do not count. A statistic with an
    argument `axis` takes many resamples at once. The resamples of a single question are all equal.
    """
    if not n or not all(len(sample) for sample in samples):
        return absent(n)
    value = float(statistic(*samples))
    if min(map(len, samples)) == 1:  # SciPy needs two
        bound = value if is_paired or len(samples) == 1 else None
        return Estimate(value, bound, bound, n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # all questions are right
        found = stats.bootstrap(
            samples,
            statistic,
            paired=is_paired,
            n_resamples=num_resamples or NUM_RESAMPLES,
            batch=BATCH,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return _with_interval(value, found.bootstrap_distribution, n)


def _with_interval(value: float, resampled: Array, n: int) -> Estimate:
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)


def confusion(truth: Array, predicted: Array, labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return how often each label (row) was given each label (column), (S, S)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label was found", UserWarning)
        return np.asarray(confusion_matrix(truth, predicted, labels=list(labels)), dtype=np.int64)


def f1_scores(tables: Array) -> Floats:
    """Return F1 of each label from confusion matrices (..., S, S); NaN for one that is nowhere."""
    hits = np.diagonal(tables, axis1=-2, axis2=-1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(2 * hits / (tables.sum(axis=-1) + tables.sum(axis=-2)))


def macro_f1(truth: Array, predicted: Array, *, seed: int) -> Estimate:
    """Return the mean F1 over the labels of the truth; in a resample, over those of them in it.

    The resamples are drawn as counts: a multinomial over the cells of the confusion matrix is the
    distribution of the counts of questions drawn with replacement.
    """
    n = len(truth)
    if not n:
        return absent()
    table = confusion(truth, predicted, sorted({*truth.tolist(), *predicted.tolist()}))
    asked = table.sum(axis=1) > 0
    draw = np.random.default_rng(seed).multinomial(n, table.ravel() / n, size=NUM_RESAMPLES)
    resampled = np.nanmean(f1_scores(draw.reshape(-1, *table.shape))[:, asked], axis=1)
    return _with_interval(float(np.mean(f1_scores(table)[asked])), resampled, n)


def bins(confidence: Array, correct: Array, num_bins: int = NUM_BINS) -> Floats:
    """Return bins of equal mass in ascending confidence.

    The result is (num_bins, 3): mean confidence, accuracy, number of questions.
    """
    parts = np.array_split(np.argsort(confidence, kind="stable"), num_bins)
    rows = [(confidence[p].mean(), correct[p].mean(), len(p)) for p in parts if len(p)]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def calibration_error(confidence: Array, correct: Array) -> float:
    """Return the expected calibration error over NUM_BINS bins of equal mass."""
    rows = bins(confidence, correct)
    return float(np.abs(rows[:, 0] - rows[:, 1]) @ rows[:, 2] / len(confidence))


def accuracy_at(confidence: Array, correct: Array, coverage: float) -> float:
    """Return the accuracy on the most confident share of the questions, at least one of them."""
    kept = max(1, round(coverage * len(confidence)))
    return float(correct[np.argsort(-confidence, kind="stable")[:kept]].mean())


def area(inside: Array, outside: Array) -> float:
    """Return the AUROC: how probably an in-scope score is above another; a tie counts half."""
    return float(roc_auc_score(*_labelled(inside, outside)))


def false_positives(inside: Array, outside: Array) -> float:
    """Return the share of `outside` at or above the threshold that keeps RECALL of `inside`."""
    false, true, _ = roc_curve(*_labelled(inside, outside), drop_intermediate=False)
    return float(false[np.argmax(true >= RECALL)])


def _labelled(inside: Array, outside: Array) -> tuple[Array, Array]:
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    return truth, np.concatenate([inside, outside])


def repeats(values: Sequence[float]) -> Estimate:
    """Return the median of repeated measurements, with their range as the interval."""
    return Estimate(median(values), min(values), max(values), len(values))
