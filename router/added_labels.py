"""What a head needs of the labels that were added after it was trained.

A label that was added changes nothing of the others: its logit, linear in scaled features, is its
log-odds against everything that the head knew. What it does not claim is shared out as before, and
below its own threshold it claims nothing. It is fitted by router/training/added.py.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AddedLabels:
    """A labels over W features.

    Attributes:
        columns: (A,) of the head's specialty weights, (W, S).
        thresholds: (A,), the least probability that counts.
        centre, spread: (W,), mean and standard deviation of features.
    """

    columns: tuple[int, ...]
    thresholds: tuple[float, ...]
    centre: Floats
    spread: Floats

    def scaled(self, features: Floats) -> Floats:
        """Return features (..., W) centred, of equal spread, and with a mean square of 1."""
        scaled = (features - self.centre) / self.spread
        length = np.sqrt(np.square(scaled).mean(axis=-1, keepdims=True))
        return np.asarray(scaled / np.maximum(length, 1e-6), dtype=np.float32)

    def put_logits(
        self, logits: npt.NDArray[Any], features: Floats, weights: Floats, biases: Floats
    ) -> None:
        """Replace the added columns of logits (..., S) by the labels' own."""
        columns = list(self.columns)
        logits[..., columns] = self.scaled(features) @ weights[:, columns] + biases[columns]

    def claimed(self, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the probability (..., A) of each label, 0 below its threshold."""
        own = logits[..., list(self.columns)].astype(np.float64)
        odds = np.exp(np.clip(own, -60, 60))
        shares = odds / (1 + odds.sum(axis=-1, keepdims=True))
        return np.where(shares >= np.array(self.thresholds), shares, 0.0)
