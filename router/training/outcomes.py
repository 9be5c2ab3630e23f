"""What a head does with examples after the thresholds: right, wrong, or left to the base model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router.head import Head
from router.policy import Thresholds
from router.training.examples import OUT_OF_SCOPE
from router.training.feature_set import FeatureSet

NOBODY = "nobody"  # instead of a specialty: the base model answers


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Of N examples, their labels and the specialties that they are sent to, or NOBODY."""

    labels: npt.NDArray[np.str_]
    named: npt.NDArray[np.str_]

    def of(self, chosen: npt.NDArray[np.bool_]) -> "Outcomes":
        return Outcomes(self.labels[chosen], self.named[chosen])

    @property
    def num_wrong(self) -> int:
        """Return how many are sent to a specialist who is not theirs, out of scope included."""
        return int(((self.named != NOBODY) & (self.named != self.labels)).sum())

    @property
    def num_abstained(self) -> int:
        """Return how many questions of a specialty are left to the base model."""
        return int(((self.named == NOBODY) & (self.labels != OUT_OF_SCOPE)).sum())

    @property
    def recalls(self) -> dict[str, float]:
        """Return, by specialty, the share of its examples that are sent to it."""
        return {
            str(label): float((self.named[self.labels == label] == label).mean())
            for label in sorted({*self.labels.tolist()} - {OUT_OF_SCOPE})
        }

    def lost_recall(self, before: "Outcomes", allowed: float) -> dict[str, float]:
        """Return the specialties that lost more than `allowed` of their recall, and how much.

        One example more than before is always allowed: of a few, it is a large share.
        """
        found = {}
        for label, value in before.recalls.items():
            count = int((before.labels == label).sum())
            loss = value - self.recalls[label]
            if loss > max(allowed, 1.5 / count):
                found[label] = loss
        return found


def outcomes(
    head: Head, thresholds: Thresholds, examples: FeatureSet, labels: Sequence[str]
) -> Outcomes:
    """Apply head and thresholds as `router.policy.decide` does to a question of one turn."""
    logits, scope_logits = head.logits(examples.features)
    return decided(head, thresholds, logits, scope_logits, examples.labels, labels)


def decided(
    head: Head,
    thresholds: Thresholds,
    logits: npt.NDArray[Any],
    scope_logits: npt.NDArray[Any],
    truth: npt.NDArray[np.str_],
    labels: Sequence[str],
) -> Outcomes:
    """Likewise from logits (N, S) and (N,) of examples whose labels are `truth` (N,)."""
    probabilities = head.probabilities(logits)
    in_scope = head.in_scope(scope_logits, probabilities) >= thresholds.min_in_scope
    least = np.array([thresholds.confidence_of(label) for label in labels])
    tops = probabilities.argmax(axis=1)
    ranked = np.sort(probabilities, axis=1)
    margin = ranked[:, -1] - ranked[:, -2] if len(labels) > 1 else ranked[:, -1]
    is_sure = (ranked[:, -1] >= least[tops]) & (margin >= thresholds.min_margin) & in_scope
    return Outcomes(truth, np.where(is_sure, np.array(labels)[tops], NOBODY))
