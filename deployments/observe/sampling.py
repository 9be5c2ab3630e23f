"""Gauges that nobody sets when they change: memory, and what waits."""

import logging
import threading
from collections.abc import Callable, Mapping

import psutil
from ray.serve import metrics

logger = logging.getLogger(__name__)

PERIOD_S = 5.0


class Sampler:
    """Calls `sample` on a thread every `period_s` seconds, and measures memory.

    Args:
        processes: name of a process, for the label -> its id.
        sample: sets further gauges; what it raises is logged, and it is called again.
    """

    def __init__(
        self,
        processes: Mapping[str, int],
        sample: Callable[[], None] = lambda: None,
        period_s: float = PERIOD_S,
    ) -> None:
        self._processes = processes
        self._sample = sample
        self._period_s = period_s
        self._stopped = threading.Event()
        self._memory = metrics.Gauge(
            "polyclinic_memory_bytes", "resident memory of a process", ("process",)
        )
        threading.Thread(target=self._run, name="sampler", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while True:
            try:
                self._sample()
                for name, pid in self._processes.items():
                    self._memory.set(psutil.Process(pid).memory_info().rss, {"process": name})
            except Exception as error:  # such as a process that has just ended
                logger.debug("not sampled: %s", type(error).__name__)
            if self._stopped.wait(self._period_s):
                return
