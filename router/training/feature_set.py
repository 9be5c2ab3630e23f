"""Features of examples, and how an artefact stores them (features.npz)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from router.features import Floats
from router.training.examples import OUT_OF_SCOPE, Array


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """N examples without their texts, which is all that an artefact keeps of them.

    Attributes:
        features: (N, W).
        labels: (N,), names of specialties or `out_of_scope`.
        weights: (N,).
        folds: (N,), the part of the cross-validation that holds an example out.
        is_validation: (N,), True for an example that is only scored.
    """

    features: Floats
    labels: npt.NDArray[np.str_]
    weights: Array
    folds: npt.NDArray[np.int64]
    is_validation: npt.NDArray[np.bool_]

    def pick(self, chosen: npt.NDArray[np.bool_]) -> "FeatureSet":
        return FeatureSet(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def joined(self, other: "FeatureSet") -> "FeatureSet":
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return FeatureSet(*(np.concatenate(pair) for pair in pairs))


def stored(examples: FeatureSet, labels: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of features.npz: a byte for each feature, a scale for each column."""
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
    """Read what `stored` returned; a feature has changed by at most half a step of its scale."""
    names = np.array([*labels, OUT_OF_SCOPE])
    return FeatureSet(
        features=arrays["codes"].astype(np.float32) * arrays["scales"],
        labels=names[arrays["labels"]],
        weights=arrays["weights"].astype(np.float64),
        folds=arrays["folds"].astype(np.int64),
        is_validation=arrays["is_validation"],
    )
