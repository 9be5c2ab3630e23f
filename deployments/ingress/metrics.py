"""What a router replica measures, for Prometheus."""

from ray.serve import metrics

from deployments.messages import Outcome
from deployments.observe.labels import BoundedNames
from router.policy import Route

_CONFIDENCE_BOUNDARIES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]


class RouteMetrics:
    """What a router replica measures, for Prometheus. Labels are bounded."""

    def __init__(self) -> None:
        self._specialties, self._adapters = BoundedNames(), BoundedNames()
        self.in_progress = metrics.Gauge(
            "polyclinic_requests_in_progress", "requests that were let in and have not ended"
        )
        self._errors = metrics.Counter(
            "polyclinic_errors_total", "replies with an error code, by code", ("code",)
        )
        self._routes = metrics.Counter(
            "polyclinic_routes_total", "routing decisions", ("specialty", "reason")
        )
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
        specialty = self._specialties.of(outcome.specialty or "none")
        adapter = self._adapters.of(outcome.adapter or "base")
        labels = {"specialty": specialty, "adapter": adapter, "outcome": outcome.outcome}
        self._requests.inc(1, labels)
        if outcome.confidence is not None:
            self._confidence.observe(outcome.confidence, {"specialty": specialty})

    def count_route(self, route: Route) -> None:
        specialty = self._specialties.of(route.specialty or "none")
        self._routes.inc(1, {"specialty": specialty, "reason": str(route.reason)})

    def count_error(self, code: str) -> None:
        self._errors.inc(1, {"code": code})
