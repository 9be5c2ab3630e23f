"""Gauges, which Ray drops where they are not set again and again; memory is one of them."""

import logging
import threading
from collections.abc import Callable, Mapping

import psutil
from ray.serve import metrics

logger = logging.getLogger(__name__)

PERIOD_S = 5.0


class Sampler:
    """Calls `samples` on a thread every `period_s` seconds, and measures memory.

    Args:
        processes: name of a process, for the label -> its id.
        samples: set further metrics; what one raises is logged, and it is called again.
    """

    def __init__(
        self,
        processes: Mapping[str, int],
        *samples: Callable[[], None],
        period_s: float = PERIOD_S,
    ) -> None:
        self._samples: tuple[Callable[[], None], ...]
        self._samples = (*samples, lambda: self._measure(processes))
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
            for sample in self._samples:
                try:
                    sample()
                except Exception as error:  # such as a process that has just ended
                    logger.debug("not sampled: %s", type(error).__name__)
            if self._stopped.wait(self._period_s):
                return

    def _measure(self, processes: Mapping[str, int]) -> None:
        for name, pid in processes.items():
            self._memory.set(psutil.Process(pid).memory_info().rss, {"process": name})
