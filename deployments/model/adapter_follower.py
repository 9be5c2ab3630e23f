"""Follows the adapters' catalogue on a thread, for a replica that no broadcast reached."""

import logging
import threading
from collections.abc import Callable

from deployments.model.adapter_manager import AdapterManager
from deployments.model.weights_reader import one_line

logger = logging.getLogger(__name__)

PAUSED_CHECK_S = 1.0


class AdapterFollower:
    """Keeps an AdapterManager up to date, and reads adapters ahead.

    Args:
        check_s: seconds between two looks at the catalogue; 0 pauses.
    """

    def __init__(self, manager: AdapterManager, check_s: Callable[[], float]) -> None:
        self._manager = manager
        self._check_s = check_s
        self._stopped = threading.Event()
        threading.Thread(target=self._follow, name="adapter-sync", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _follow(self) -> None:
        self._tolerant(self._manager.prefetch)
        while not self._stopped.wait(self._check_s() or PAUSED_CHECK_S):
            if self._check_s():
                self._tolerant(self._look)

    def _look(self) -> None:
        if self._manager.is_behind():
            self._manager.try_sync()
        self._manager.prefetch()

    def _tolerant(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # of any library's kind: the thread is to look again
            why = one_line(error)
            logger.error("the adapters stay as they are: %s: %s", type(error).__name__, why)
