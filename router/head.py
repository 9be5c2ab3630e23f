"""The head: encoder and n-grams together -> calibrated specialties and scope.

A view's features (D + S0 + 1,) are D directions of the encoder's pooled vector (principal
components, then the S0 specialties and the scope as the encoder learnt them), the S0 logits of the
n-gram specialties and the n-gram scope logit, each scaled to a like size. They are all that the
head sees, so it can be fitted anew without any text (head_training.py, extension.py). S
specialties; S0 of them are known to encoder and n-grams.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from router.features import NgramScores

Floats = npt.NDArray[np.float32]
MAX_LOG_ODDS = 7.0  # of a probability that is as good as certain


@dataclass(frozen=True, slots=True)
class Projection:
    """Encoder and n-gram outputs -> features."""

    mean: Floats  # (H,)
    components: Floats  # (H, D), scaled; the last is the scope
    ngram_scale: float

    def features(self, pooled: Floats, ngrams: NgramScores) -> Floats:
        """(D + S0 + 1,)"""
        return np.concatenate(
            [
                (pooled - self.mean) @ self.components,
                ngrams.specialty * self.ngram_scale,
                [ngrams.scope * self.ngram_scale],
            ]
        ).astype(np.float32)

    def relevance(self, features: Floats) -> Floats:
        """(views, D + S0 + 1) -> (views,): what a view of a text weighs, before the softmax.

        The scope logits of encoder and n-grams, and the lead of the first specialty over the
        second by the sum of theirs: a line about nothing has neither.
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
    """Linear over the features; calibration beside it.

    The probability of being in scope is Platt scaling (1999) over two inputs, the scope logit and
    the log-odds of the top specialty: a maximum probability alone is a poor rule, but it helps.
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
        """(..., D + S0 + 1) -> specialty logits (..., S) and scope logits (...)."""
        return (
            features @ self.specialty + self.specialty_bias,
            features @ self.scope + self.scope_bias,
        )

    def probabilities(self, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Calibrated; (..., S)."""
        return softmax(logits / self.temperature)

    def in_scope(
        self, scope_logits: npt.NDArray[Any], probabilities: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Calibrated; (...)."""
        return sigmoid(
            self.scope_scale * scope_logits
            + self.scope_confidence * log_odds(probabilities.max(axis=-1))
            + self.scope_offset
        )


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def log_odds(probability: npt.NDArray[Any] | float) -> npt.NDArray[Any]:
    """Bounded at MAX_LOG_ODDS."""
    bound = 1 / (1 + np.exp(MAX_LOG_ODDS))
    bounded = np.clip(probability, bound, 1 - bound)
    return np.asarray(np.log(bounded / (1 - bounded)))


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -60, 60))))
