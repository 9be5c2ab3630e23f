"""Intervals: percentile bootstrap over questions (Efron and Tibshirani 1993, chapter 13), Wilson's.

A resample is how often each question was drawn. Systems that are compared share the draws, which
makes their difference a paired one.

scipy.stats.bootstrap computes the same interval of one statistic. It is not used because base,
adapter, dummies and their differences share draws here, because pooled rows draw within each
specialty, and because its index arrays of BLEU's ten statistics take 640 MB where the counts of a
matrix product take 64.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
NUM_RESAMPLES = 10_000
MAX_ORDER = 4  # of n-grams in BLEU


def draws(num_questions: int, seed: int, num_resamples: int = NUM_RESAMPLES) -> Floats:
    """Return how often each question is in each resample, (num_resamples, num_questions)."""
    generator = np.random.default_rng(seed)
    even = np.full(num_questions, 1 / num_questions)
    return generator.multinomial(num_questions, even, size=num_resamples).astype(np.float64)


def mean(values: Floats, counts: Floats) -> Floats:
    """Return the mean of `values` (Q,) in each resample of `counts` (R, Q), (R,)."""
    return np.asarray(counts @ values / counts.sum(axis=1))


def corpus_bleu(statistics: Floats) -> Floats:
    """Return corpus BLEU, percent, (...), from summed statistics (..., 10).

    The last axis is sacrebleu's: system length, reference length, matches of 1- to 4-grams, and
    the system's number of them. Brevity penalty and exponential smoothing are sacrebleu's defaults
    (Papineni et al. 2002; Post 2018); a test compares the two.
    """
    lengths, references = statistics[..., 0], statistics[..., 1]
    matches, totals = statistics[..., 2 : 2 + MAX_ORDER], statistics[..., 2 + MAX_ORDER :]
    smoothing = np.ones_like(lengths)
    logs = np.zeros_like(lengths)
    for order in range(MAX_ORDER):
        match, total = matches[..., order], totals[..., order]
        unmatched = (match == 0) & (total > 0)
        smoothing = np.where(unmatched, smoothing * 2, smoothing)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(unmatched, 1 / (smoothing * total), match / total)
            logs += np.log(precision)
    with np.errstate(divide="ignore", invalid="ignore"):
        penalty = np.minimum(0.0, 1 - references / lengths)
    bleu = 100 * np.exp(logs / MAX_ORDER + penalty)
    # Nothing is smoothed where no word matches, or where no answer has a 4-gram.
    return np.where((matches.sum(axis=-1) == 0) | (totals[..., -1] == 0), 0.0, bleu)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, `right` of `count` (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(right, count).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def interval(values: Floats) -> list[float]:
    """Return the middle 95 % of resampled values (R,)."""
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def estimate(value: float, resampled: Floats) -> dict[str, Any]:
    return {"value": float(value), "interval": interval(resampled)}
