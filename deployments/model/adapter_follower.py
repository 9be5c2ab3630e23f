"""Follows the adapters' catalogue on a thread, and measures the adapters' tiers and loads.

The thread is for a replica that no broadcast reached.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable

from ray.serve import metrics

from deployments.model.adapter_manager import AdapterManager
from deployments.observe.labels import BoundedNames

logger = logging.getLogger(__name__)

PAUSED_CHECK_S = 1.0
_LOAD_BOUNDARIES_S = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]


class AdapterFollower:
    """Keeps an AdapterManager up to date, reads adapters ahead, and measures the tiers.

    Args:
        check_s: seconds between two looks at the catalogue; 0 pauses.
    """

    def __init__(self, manager: AdapterManager, check_s: Callable[[], float]) -> None:
        self._manager = manager
        self._check_s = check_s
        self._stopped = threading.Event()
        self._resident = metrics.Gauge(
            "polyclinic_adapter_resident", "adapters in service, by tier", ("tier",)
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
        self._adapters = BoundedNames()
        self._counted: Counter[str] = Counter()
        self._measure()
        threading.Thread(target=self._follow, name="adapter-sync", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _follow(self) -> None:
        self._manager.prefetch()
        while not self._stopped.wait(self._check_s() or PAUSED_CHECK_S):
            self._measure()
            if self._check_s():
                self._look()

    def _look(self) -> None:
        try:
            is_behind = self._manager.is_behind()
        except OSError as error:
            logger.error("the adapters stay as they are: %s", error)
            return
        if is_behind:
            self._manager.try_sync()
        self._manager.prefetch()

    def _measure(self) -> None:
        tiers, loads = self._manager.measure()
        for tier, count in tiers.items():
            self._resident.set(count, {"tier": tier})
        for name, seconds in loads:
            self._load.observe(seconds, {"adapter": self._adapters.of(name)})
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
