"""Find what is wrong with the content of an artefact, beyond what checksums show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from router.features import NgramModel
from router.head import Head, Projection


def shape_problems(
    num_labels: int, num_known: int, ngrams: NgramModel, projection: Projection, head: Head
) -> list[str]:
    """Return the arrays whose shapes do not fit the labels, and whether the keys do not ascend.

    Args:
        num_labels: specialties of the head.
        num_known: specialties that encoder and n-grams know.
    """
    num_ngrams = len(ngrams.vocabulary.keys)
    width = projection.components.shape[-1] + num_known + 1
    shapes = {
        "idf": (ngrams.vocabulary.idf, (num_ngrams,)),
        "ngram_specialty": (ngrams.specialty, (num_ngrams, num_known)),
        "ngram_specialty_bias": (ngrams.specialty_bias, (num_known,)),
        "ngram_scope": (ngrams.scope, (num_ngrams,)),
        "ngram_french": (ngrams.french, (num_ngrams,)),
        "components": (projection.components, (len(projection.mean), width - num_known - 1)),
        "specialty": (head.specialty, (width, num_labels)),
        "specialty_bias": (head.specialty_bias, (num_labels,)),
        "scope": (head.scope, (width,)),
    }
    if head.added is not None:
        shapes["added_centre"] = (head.added.centre, (width,))
        shapes["added_spread"] = (head.added.spread, (width,))
    wrong = [
        f"{name} {array.shape}, expected {want}"
        for name, (array, want) in shapes.items()
        if array.shape != want
    ]
    if wrong:
        return [f"shapes do not fit the labels: {'; '.join(wrong)}"]
    if head.added is not None and head.added.spread.min() <= 0:
        return ["added_spread is not above 0"]
    ascend = np.all(np.diff(ngrams.vocabulary.keys.astype(np.int64)) > 0)
    return [] if ascend else ["its keys do not ascend"]


def manifest_problems(specialties: Sequence[str], manifest: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the numbers and the order of the labels.

    Training sorts the labels, so another order means a column under a wrong name.
    """
    calibration, thresholds = manifest["calibration"], manifest["thresholds"]
    by_label = {
        f"threshold of {name}": value
        for name, value in manifest.get("label_thresholds", {}).items()
    }
    numbers = {**calibration, **thresholds, **by_label, "ngram_scale": manifest["ngram_scale"]}
    wrong = [
        f"{name} is {value!r}, not a finite number"
        for name, value in numbers.items()
        if not isinstance(value, int | float) or not math.isfinite(value)
    ]
    if not wrong:
        if calibration["temperature"] <= 0:
            wrong.append(f"temperature is {calibration['temperature']}, not above 0")
        wrong += [
            f"{name} is {value}, not from 0 to 1"
            for name, value in {**thresholds, **by_label}.items()
            if not 0 <= value <= 1
        ]
    if unknown := sorted({*manifest.get("label_thresholds", {})} - {*specialties}):
        wrong.append(f"label_thresholds names {', '.join(unknown)}, not among the specialties")
    if list(specialties) != sorted(set(specialties)):
        wrong.append("specialties are not distinct and in alphabetical order")
    return wrong
