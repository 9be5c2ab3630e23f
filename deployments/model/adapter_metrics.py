"""What a model replica measures of its adapters, for Prometheus."""

from collections import Counter

from ray.serve import metrics

from deployments.model.adapter_manager import AdapterManager
from deployments.observe.labels import BoundedNames

_LOAD_BOUNDARIES_S = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]


class AdapterMetrics:
    """`sample` sets what nobody sets when it changes. One thread calls it, every few seconds: Ray
    drops a gauge that is not set again, so the series of a version end with it."""

    def __init__(self, manager: AdapterManager) -> None:
        self._manager = manager
        self._adapters = BoundedNames()
        self._counted: Counter[str] = Counter()
        self._resident = metrics.Gauge(
            "polyclinic_adapter_resident", "adapters in service, by tier", ("tier",)
        )
        self._answers = metrics.Gauge(
            "polyclinic_version_answers",
            "answers of a version since the replica's start",
            ("adapter", "version", "state"),
        )
        self._load = metrics.Histogram(
            "polyclinic_adapter_load_s", "loading one adapter", _LOAD_BOUNDARIES_S, ("adapter",)
        )
        self._evictions = metrics.Counter(
            "polyclinic_adapter_evictions_total", "adapters that have left the device"
        )
        self._leases = metrics.Counter(
            "polyclinic_adapter_leases_total", "answers, by where their adapter was", ("found",)
        )

    def sample(self) -> None:
        tiers, loads = self._manager.measure()
        for tier, count in tiers.items():
            self._resident.set(count, {"tier": tier})
        for name, seconds in loads:
            self._load.observe(seconds, {"adapter": self._adapters.of(name)})
        for name, version, state, num_answers in self._manager.answers_by_version():
            if self._adapters.of(name) == name:
                labels = {"adapter": name, "version": version, "state": state}
                self._answers.set(num_answers, labels)
        self._count("evicted", self._manager.num_evictions, self._evictions)
        residency = self._manager.residency()
        for found, name in (("device", "adapter_hits"), ("elsewhere", "adapter_waits")):
            self._count(name, residency[name], self._leases, {"found": found})

    def _count(
        self, name: str, total: int, counter: metrics.Counter, tags: dict[str, str] | None = None
    ) -> None:
        """Add what came since the last call to a counter, which takes no 0."""
        added = total - self._counted[name]
        if added > 0:
            counter.inc(added, tags)
            self._counted[name] = total
