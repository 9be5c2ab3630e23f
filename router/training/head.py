"""Features -> a calibrated head. No text is needed, so a clone without the data can do it too.

The head is fitted on examples that neither encoder nor n-grams were trained on. Its temperature,
the Platt scaling of the scope and the thresholds are fitted on cross-validated logits of the same
examples, whole groups (a disease, a sign) at a time; validation decides nothing. Needs
scikit-learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar
from sklearn.linear_model import LogisticRegression

from router.head import Floats, Head, log_odds, sigmoid, softmax
from router.training.examples import OUT_OF_SCOPE, Array, Recipe, balanced

COST_SLACK = 0.01


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """N examples without their texts.

    Attributes:
        features: (N, W).
        labels: (N,) names, `out_of_scope` among them.
        weights: (N,).
        folds: (N,) which part of the cross-validation an example is held out in.
        is_validation: (N,) examples that are only for scoring.
    """

    features: Floats
    labels: npt.NDArray[np.str_]
    weights: Array
    folds: npt.NDArray[np.int64]
    is_validation: npt.NDArray[np.bool_]

    def pick(self, chosen: npt.NDArray[np.bool_]) -> "FeatureSet":
        return FeatureSet(
            self.features[chosen],
            self.labels[chosen],
            self.weights[chosen],
            self.folds[chosen],
            self.is_validation[chosen],
        )

    def joined(self, other: "FeatureSet") -> "FeatureSet":
        return FeatureSet(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.weights, other.weights]),
            np.concatenate([self.folds, other.folds]),
            np.concatenate([self.is_validation, other.is_validation]),
        )


@dataclass(frozen=True, slots=True)
class FittedHead:
    head: Head
    thresholds: dict[str, float]
    report: dict[str, float]  # cross-validated figures


@dataclass(frozen=True, slots=True)
class _Linear:
    weights: Floats
    bias: Any


def fit_head(examples: FeatureSet, labels: Sequence[str], recipe: Recipe) -> FittedHead:
    """Fit and calibrate on the examples that are not validation.

    Raises:
        ValueError: a label without an example, or no out-of-scope example.
    """
    used = examples.pick(~examples.is_validation)
    missing = sorted({*labels, OUT_OF_SCOPE} - set(used.labels.tolist()))
    if missing:
        raise ValueError(f"no training question for {', '.join(missing)}")
    inside = used.labels != OUT_OF_SCOPE
    logits, scope_logits = _cross_validated(used, labels, recipe)
    truth = np.array([labels.index(name) if name != OUT_OF_SCOPE else -1 for name in used.labels])
    temperature = fit_temperature(logits[inside], truth[inside], used.weights[inside])
    probabilities = softmax(logits / temperature)
    scope_weights = balanced(used.weights, inside)
    inputs = np.stack([scope_logits, log_odds(probabilities.max(axis=1))], axis=1)
    scale, confidence, offset = fit_platt(inputs, inside, scope_weights)
    in_scope = sigmoid(inputs @ np.array([scale, confidence]) + offset)
    thresholds, report = _thresholds(
        probabilities, in_scope, truth, used.weights, scope_weights, recipe
    )
    specialty, scope = _fit(used, labels, recipe)
    head = Head(
        specialty=specialty.weights,
        specialty_bias=specialty.bias,
        scope=scope.weights,
        scope_bias=float(scope.bias),
        temperature=round(temperature, 6),
        scope_scale=round(scale, 6),
        scope_confidence=round(confidence, 6),
        scope_offset=round(offset, 6),
    )
    return FittedHead(head, thresholds, report)


def recalls(head: Head, examples: FeatureSet, labels: Sequence[str]) -> dict[str, float]:
    """Share of each label's validation examples whose top specialty it is."""
    held_out = examples.pick(examples.is_validation)
    tops = np.array(labels)[head.logits(held_out.features)[0].argmax(axis=1)]
    return {
        label: float((tops[held_out.labels == label] == label).mean())
        for label in labels
        if (held_out.labels == label).any()
    }


def _fit(used: FeatureSet, labels: Sequence[str], recipe: Recipe) -> tuple[_Linear, _Linear]:
    inside = used.labels != OUT_OF_SCOPE
    specialty = LogisticRegression(C=recipe.head_c, max_iter=1000, tol=1e-5).fit(
        used.features[inside], used.labels[inside], sample_weight=used.weights[inside]
    )
    assert list(specialty.classes_) == list(labels), (list(specialty.classes_), list(labels))
    scope = LogisticRegression(C=recipe.scope_c, max_iter=1000, tol=1e-5).fit(
        used.features, inside, sample_weight=balanced(used.weights, inside)
    )
    return (
        _Linear(
            specialty.coef_.T.astype(np.float32),
            specialty.intercept_.astype(np.float32),
        ),
        _Linear(scope.coef_[0].astype(np.float32), np.float32(scope.intercept_[0])),
    )


def _cross_validated(
    used: FeatureSet, labels: Sequence[str], recipe: Recipe
) -> tuple[Array, Array]:
    """Logits of each example from a head that was fitted without its fold."""
    logits = np.zeros((len(used.labels), len(labels)))
    scope_logits = np.zeros(len(used.labels))
    for fold in sorted(set(used.folds.tolist())):
        out = used.folds == fold
        rest = used.pick(~out)
        if {*labels, OUT_OF_SCOPE} - set(rest.labels.tolist()):
            raise ValueError(
                f"fold {fold}: a label has too few questions to be cross-validated: give more"
            )
        specialty, scope = _fit(rest, labels, recipe)
        logits[out] = used.features[out] @ specialty.weights + specialty.bias
        scope_logits[out] = used.features[out] @ scope.weights + scope.bias
    return logits, scope_logits


def _thresholds(
    probabilities: Array,
    in_scope: Array,
    truth: npt.NDArray[np.int64],
    weights: Array,
    scope_weights: Array,
    recipe: Recipe,
) -> tuple[dict[str, float], dict[str, float]]:
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
    thresholds = {
        "min_confidence": min_confidence,
        "min_margin": min_margin,
        "min_in_scope": min_in_scope,
    }
    return thresholds, report


def fit_temperature(logits: Array, truth: npt.NDArray[Any], weights: Array) -> float:
    """The divisor of the logits with the lowest weighted log loss (Guo et al. 2017)."""

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature))
        picked = probabilities[np.arange(len(truth)), truth]
        return float(-(weights * np.log(np.maximum(picked, 1e-12))).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def fit_platt(
    inputs: Array, truth: npt.NDArray[np.bool_], weights: Array
) -> tuple[float, float, float]:
    """Platt scaling (1999) over two inputs, (n, 2): (weight, weight, offset) of the sigmoid."""

    def loss(parameters: Array) -> float:
        z = inputs @ parameters[:2] + parameters[2]
        signed = np.where(truth, -z, z)
        return float((weights * np.logaddexp(0, signed)).sum())

    found = minimize(loss, np.array([1.0, 0.0, 0.0]), method="Nelder-Mead").x
    return float(found[0]), float(found[1]), float(found[2])


def best_threshold(
    scores: Array, *, kept_cost: Array, dropped_cost: Array, lowest: float = 0.05
) -> float:
    """A threshold of low total cost: `kept_cost` at or above, `dropped_cost` below.

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


def stored(examples: FeatureSet, labels: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Arrays for features.npz: a byte a feature, each column with its own scale."""
    names = [*labels, OUT_OF_SCOPE]
    scales = np.maximum(np.abs(examples.features).max(axis=0), 1e-6) / 127
    return {
        "codes": np.round(examples.features / scales).astype(np.int8),
        "scales": scales.astype(np.float32),
        "labels": np.array([names.index(name) for name in examples.labels], dtype=np.uint8),
        "weights": examples.weights.astype(np.float16),
        "folds": examples.folds.astype(np.uint8),
        "is_validation": examples.is_validation,
    }


def restored(arrays: Mapping[str, npt.NDArray[Any]], labels: Sequence[str]) -> FeatureSet:
    """`stored`, read back; the bytes have cost each feature at most half a step of its scale."""
    names = np.array([*labels, OUT_OF_SCOPE])
    return FeatureSet(
        features=arrays["codes"].astype(np.float32) * arrays["scales"],
        labels=names[arrays["labels"]],
        weights=arrays["weights"].astype(np.float64),
        folds=arrays["folds"].astype(np.int64),
        is_validation=arrays["is_validation"],
    )
