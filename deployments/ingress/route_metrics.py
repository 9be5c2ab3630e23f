"""What a router replica measures of its requests. Labels are bounded by the catalogue."""

from ray.serve import metrics

from deployments.messages import Outcome

_CONFIDENCE_BOUNDARIES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]


class RouteMetrics:
    """Prometheus metrics by specialty, adapter and outcome."""

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "polyclinic_requests_total",
            "finished requests",
            ("specialty", "adapter", "outcome"),
        )
        self._confidence = metrics.Histogram(
            "polyclinic_route_confidence",
            "calibrated probability of the specialty chosen",
            _CONFIDENCE_BOUNDARIES,
            ("specialty",),
        )

    def record(self, outcome: Outcome) -> None:
        specialty = outcome.specialty or "none"
        adapter = outcome.adapter or "base"
        labels = {"specialty": specialty, "adapter": adapter, "outcome": outcome.outcome}
        self._requests.inc(1, labels)
        if outcome.confidence is not None:
            self._confidence.observe(outcome.confidence, {"specialty": specialty})
