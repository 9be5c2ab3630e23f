"""Fit a calibrated head on features. No text is needed, so a clone without the data can do it.

The head is fitted on examples that neither encoder nor n-grams were trained on. Its temperature,
the Platt scaling of the scope and the thresholds are fitted on cross-validated logits of the same
examples, whole groups (a disease, a sign) at a time; validation decides nothing. Needs
scikit-learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from router.features import Floats
from router.head import Head, log_odds, sigmoid, softmax
from router.training.calibration import fit_platt, fit_temperature, fit_thresholds
from router.training.examples import OUT_OF_SCOPE, Array, Recipe, balanced
from router.training.feature_set import FeatureSet


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
        ValueError: a label, or out_of_scope, has no example.
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
    thresholds, report = fit_thresholds(
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
    """Return, by label, the share of its validation examples whose top specialty it is."""
    held_out = examples.pick(examples.is_validation)
    logits, _ = head.logits(held_out.features)
    tops = np.array(labels)[head.probabilities(logits).argmax(axis=1)]
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
    """Return each example's logits, (N, S) and (N,), from a head fitted without its fold."""
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
