"""Follows a value that others change: a file, a folder, a catalogue. The last good value stays."""

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

PAUSED_CHECK_S = 1.0  # how often to look whether following was switched on again

T = TypeVar("T")


class Reloader(Generic[T]):
    """Looks on its own thread whether the value's etag changed, and loads it then.

    `current` is replaced as a whole, so it can be used for longer. A value that cannot be loaded
    changes nothing but `problem`, which says why; it is tried again at each look.

    Args:
        etag: Return what changes whenever the value does; cheap enough to call every second.
        load: Return the value.
        period_s: seconds between two looks; 0 pauses.
        first: the value before the first good load; None if that load must succeed now.
        describe: a value in a few words, for the log.
        explain: (failure, the value that stays) -> what `problem` says.
        on_change: called with the value before and the new one.

    Raises:
        Whatever `etag` or `load` raises, if there is no `first`.
    """

    def __init__(
        self,
        etag: Callable[[], object],
        load: Callable[[], T],
        period_s: Callable[[], float],
        *,
        first: T | None = None,
        describe: Callable[[T], str] = str,
        explain: Callable[[Exception, T], str] = lambda error, kept: str(error),
        on_change: Callable[[T, T], None] = lambda before, after: None,
    ) -> None:
        self.problem: str | None = None
        self._etag = etag
        self._load = load
        self._period_s = period_s
        self._describe = describe
        self._explain = explain
        self._on_change = on_change
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="reload", daemon=True)
        self._seen: object = None if first is not None else etag()
        self.current: T = load() if first is None else first
        if first is not None:
            self.refresh()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def refresh(self) -> bool:
        """Look now; returns whether another value replaced the current one. Never raises."""
        with self._lock:
            try:
                found = self._etag()
                if found == self._seen:
                    self.problem = None
                    return False
                fresh = self._load()
            except (OSError, ValueError) as error:
                self._keep(error)
                return False
            before, self.current = self.current, fresh
            self._seen, self.problem = found, None
            logger.info("now %s; before: %s", self._describe(fresh), self._describe(before))
            self._on_change(before, fresh)
            return True

    def _keep(self, error: Exception) -> None:
        problem = self._explain(error, self.current)
        if problem != self.problem:  # logged once, not at every look
            logger.error("kept %s: %s", self._describe(self.current), problem)
        self.problem = problem

    def _follow(self) -> None:
        while not self._stopped.wait(self._period_s() or PAUSED_CHECK_S):
            if self._period_s():
                self.refresh()
