"""The linear head: from encoder and n-grams to calibrated specialties and scope.

A view's features (D + S0 + 1,) are D directions of the encoder's pooled vector (principal
components, then the S0 specialties and the scope as the encoder learnt them), the S0 logits of the
n-gram specialties and the n-gram scope logit, each scaled to a similar size. The head sees nothing
else, so it can be fitted again without any text (router/training/extend.py). S specialties; S0 of
them are known to encoder and n-grams.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router.features import NgramScores

Floats = npt.NDArray[np.float32]
MAX_LOG_ODDS = 7.0  # bounds what a probability near 0 or 1 counts


@dataclass(frozen=True, slots=True)
class Projection:
    """Maps the output of encoder and n-grams to features."""

    mean: Floats  # (H,)
    components: Floats  # (H, D), scaled; the last is the scope
    ngram_scale: float

    def features(self, pooled: Floats, ngrams: NgramScores) -> Floats:
        """Return the features (D + S0 + 1,) of a pooled vector (H,) and n-gram scores."""
        return np.concatenate(
            [
                (pooled - self.mean) @ self.components,
                ngrams.specialty * self.ngram_scale,
                [ngrams.scope * self.ngram_scale],
            ]
        ).astype(np.float32)

    def relevance(self, features: Floats) -> Floats:
        """Return the weight of each view of a text before the softmax, (views,).

        It is the sum of the scope logits of encoder and n-grams, and of the lead of the first
        specialty over the second: a line about nothing medical has neither.

        Args:
            features: (views, D + S0 + 1).
        """
        end = self.components.shape[1] - 1  # of the encoder's specialties; then its scope
        num_known = features.shape[1] - end - 2
        scopes = features[:, end] + features[:, -1]
        known = features[:, end - num_known : end] + features[:, end + 1 : -1]
        ranked = np.sort(known, axis=1)
        lead = ranked[:, -1] - ranked[:, -2] if num_known > 1 else 0.0
        return np.asarray((scopes + lead) / self.ngram_scale)


@dataclass(frozen=True, slots=True)
class Head:
    """Linear models over the features, and their calibration.

    The probability of being in scope is Platt scaling (1999) over two inputs, the scope logit and
    the log-odds of the top specialty, which is a poor rule alone but improves the other.
    """

    specialty: Floats  # (D + S0 + 1, S)
    specialty_bias: Floats  # (S,)
    scope: Floats  # (D + S0 + 1,)
    scope_bias: float
    temperature: float  # divides the specialty logits (Guo et al. 2017)
    scope_scale: float
    scope_confidence: float
    scope_offset: float

    def logits(self, features: Floats) -> tuple[Floats, npt.NDArray[Any]]:
        """Return specialty logits (..., S) and scope logits (...) of features (..., D + S0 + 1)."""
        return (
            features @ self.specialty + self.specialty_bias,
            features @ self.scope + self.scope_bias,
        )

    def probabilities(self, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return calibrated probabilities (..., S) of specialty logits (..., S)."""
        return softmax(logits / self.temperature)

    def in_scope(
        self, scope_logits: npt.NDArray[Any], probabilities: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Return calibrated probabilities (...) of being in scope."""
        return sigmoid(
            self.scope_scale * scope_logits
            + self.scope_confidence * log_odds(probabilities.max(axis=-1))
            + self.scope_offset
        )


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the softmax along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def log_odds(probability: npt.NDArray[Any] | float) -> npt.NDArray[Any]:
    """Return log(p / (1 - p)), bounded at MAX_LOG_ODDS."""
    bound = 1 / (1 + np.exp(MAX_LOG_ODDS))
    bounded = np.clip(probability, bound, 1 - bound)
    return np.asarray(np.log(bounded / (1 - bounded)))


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))))
