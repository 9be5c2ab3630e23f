"""The probabilities that decide a route (policy.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Probabilities that decide."""

    min_confidence: float  # with less, no specialist is named
    min_in_scope: float  # with less, the question is not one for a clinic
    min_margin: float = 0.0  # with less between the two top specialties, none is named
    by_label: Mapping[str, float] = field(default_factory=dict)  # instead of min_confidence

    def confidence_of(self, specialty: str) -> float:
        """Return the least probability with which a specialty is named."""
        return self.by_label.get(specialty, self.min_confidence)

    def overruled(self, min_confidence: float | None) -> "Thresholds":
        """Return these with one confidence for every label; as they are if it is None."""
        if min_confidence is None:
            return self
        return replace(self, min_confidence=min_confidence, by_label={})
