"""The router's training examples, and how much each of them counts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

OUT_OF_SCOPE = "out_of_scope"
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One training example.

    Attributes:
        specialty: a label or `out_of_scope`.
        source, kind: decide its weight (Recipe).
        group: examples of one group stay together in the head's cross-validation.
    """

    text: str
    specialty: str
    language: str
    source: str
    group: str = ""
    kind: str = "question"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The trainer's settings. Costs are relative; weights multiply what an example counts."""

    min_count: int = 3
    max_features: int = 40_000
    ngram_c: float = 10.0
    num_components: int = 64
    projection_c: float = 0.01
    max_projection_examples: int = 24_000
    head_c: float = 0.02
    scope_c: float = 0.3
    num_folds: int = 5
    wrong_cost: float = 1.0  # of naming the wrong specialist
    abstain_cost: float = 0.5  # of leaving an in-scope question to the base model
    refuse_cost: float = 2.0  # of calling a patient's question out of scope
    admit_cost: float = 1.0  # of treating another question as a patient's
    source_weights: tuple[tuple[str, float], ...] = (("written", 3.0), ("written cases", 0.5))
    kind_weights: tuple[tuple[str, float], ...] = (("term", 0.35), ("passage", 0.5))
    seed: int = 0


def example_weights(examples: Sequence[LabelledText], recipe: Recipe) -> Array:
    """Return weights (N,) of mean 1: by source, by kind, and more for examples of rare labels."""
    by_source, by_kind = dict(recipe.source_weights), dict(recipe.kind_weights)
    counts = Counter(e.specialty for e in examples)
    median = float(np.median(list(counts.values())))
    weights = np.array(
        [
            by_source.get(e.source, 1.0)
            * by_kind.get(e.kind, 1.0)
            * (median / counts[e.specialty]) ** 0.5
            for e in examples
        ]
    )
    return np.asarray(weights / weights.mean())


def balanced(weights: Array, positive: npt.NDArray[np.bool_]) -> Array:
    """Scale weights so that both sides have the same sum: a prior of one half."""
    scaled = weights.copy()
    for side in (True, False):
        total = weights[positive == side].sum()
        if total > 0:
            scaled[positive == side] *= len(positive) / (2 * total)
    return scaled
