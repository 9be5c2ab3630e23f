"""Fit temperature, Platt scaling and thresholds on cross-validated scores. Needs SciPy."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar

from router.head import softmax
from router.training.examples import Array, Recipe

COST_SLACK = 0.01  # of the lowest cost; see best_threshold


def fit_thresholds(
    probabilities: Array,
    in_scope: Array,
    truth: npt.NDArray[np.int64],
    weights: Array,
    scope_weights: Array,
    recipe: Recipe,
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the thresholds of lowest cost, and what they would have done, by figure.

    Args:
        probabilities: (N, S), calibrated.
        in_scope: (N,), calibrated.
        truth: (N,), the column of the label, -1 out of scope.
        weights: (N,), for the choice of specialty.
        scope_weights: (N,), for the scope.
    """
    inside = truth >= 0
    correct = probabilities.argmax(axis=1) == truth
    ranked = np.sort(probabilities, axis=1)
    top, margin = ranked[:, -1], ranked[:, -1] - ranked[:, -2]
    wrong = recipe.wrong_cost * ~correct * weights
    abstained = recipe.abstain_cost * weights
    min_confidence = best_threshold(
        top[inside], kept_cost=wrong[inside], dropped_cost=abstained[inside]
    )
    sure = inside & (top >= min_confidence)
    min_margin = best_threshold(
        margin[sure], kept_cost=wrong[sure], dropped_cost=abstained[sure], lowest=0.0
    )
    min_in_scope = best_threshold(
        in_scope,
        kept_cost=recipe.admit_cost * ~inside * scope_weights,
        dropped_cost=recipe.refuse_cost * inside * scope_weights,
    )
    report = {
        "accuracy": round(float(np.average(correct[inside], weights=weights[inside])), 4),
        "in_scope_recall": round(float((in_scope[inside] >= min_in_scope).mean()), 4),
        "out_of_scope_recall": round(float((in_scope[~inside] < min_in_scope).mean()), 4),
    }
    found = {"min_confidence": min_confidence, "min_margin": min_margin}
    return {**found, "min_in_scope": min_in_scope}, report


def fit_temperature(logits: Array, truth: npt.NDArray[Any], weights: Array) -> float:
    """Return the divisor of the logits with the lowest weighted log loss (Guo et al. 2017)."""

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))
        picked = probabilities[np.arange(len(truth)), truth]
        return float(-(weights * np.log(np.maximum(picked, 1e-12))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def fit_platt(
    inputs: Array, truth: npt.NDArray[np.bool_], weights: Array
) -> tuple[float, float, float]:
    """Fit Platt scaling (1999) over two inputs (n, 2): returns two weights and the offset."""

    def loss(parameters: Array) -> float:
        z = inputs @ parameters[:2] + parameters[2]
        signed = np.where(truth, -z, z)
        return float((weights * np.logaddexp(0, signed)).sum())

    found = minimize(loss, np.array([1.0, 0.0, 0.0]), method="Nelder-Mead").x
    return float(found[0]), float(found[1]), float(found[2])


def best_threshold(
    scores: Array, *, kept_cost: Array, dropped_cost: Array, lowest: float = 0.05
) -> float:
    """Return a threshold of low total cost: `kept_cost` at or above it, `dropped_cost` below.

    Candidates are `lowest`, then each hundredth up to 0.95. Costs are flat and noisy around their
    minimum, so the middle of the candidates within COST_SLACK of it is taken. All arrays (n,).
    """
    candidates = np.round(np.arange(lowest, 0.96, 0.01), 2)
    costs = [
        float(np.where(scores >= candidate, kept_cost, dropped_cost).sum())
        for candidate in candidates
    ]
    allowed = min(costs) + COST_SLACK * abs(min(costs))
    good = [c for c, cost in zip(candidates, costs, strict=True) if cost <= allowed]
    return float(good[(len(good) - 1) // 2])
