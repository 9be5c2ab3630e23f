"""Follows a value that others change: a file, a folder, a catalogue. The last good value stays."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

PAUSED_CHECK_S = 1.0  # how often to look whether following was switched on again
HANGS_S = 10.0  # a look that takes longer is a problem

T = TypeVar("T")


class Reloader(Generic[T]):
    """Looks on its own thread whether the value's etag changed, and loads it then.

    `current` is replaced as a whole, so it can be used for longer. A value that cannot be loaded
    changes nothing but `problem`, which says why; it is tried again at each look. So does a look
    that hangs, as a file server may, until it ends.

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
        explain: Callable[[Exception, T], str] = lambda error, kept: (
            str(error) or type(error).__name__
        ),
        on_change: Callable[[T, T], None] = lambda before, after: None,
    ) -> None:
        self._problem: str | None = None
        self._looks_since: float | None = None
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

    @property
    def problem(self) -> str | None:
        """Why the current value may be an old one; None if it is not."""
        since = self._looks_since
        if since is not None and (seconds := time.monotonic() - since) > HANGS_S:
            return f"the last look has not been answered for {seconds:.0f} s"
        return self._problem

    def refresh(self) -> bool:
        """Look now, unless another look hangs; returns whether another value replaced the current
        one. Never raises."""
        if not self._lock.acquire(timeout=HANGS_S):
            return False
        self._looks_since = time.monotonic()
        try:
            return self._look()
        except Exception as error:  # of any library's kind: the thread is to look again
            self._keep(error)
            return False
        finally:
            self._looks_since = None
            self._lock.release()

    def _look(self) -> bool:
        found = self._etag()
        if found == self._seen:
            self._problem = None
            return False
        before, fresh = self.current, self._load()
        self.current, self._seen, self._problem = fresh, found, None
        logger.info("now %s; before: %s", self._describe(fresh), self._describe(before))
        self._on_change(before, fresh)
        return True

    def _keep(self, error: Exception) -> None:
        problem = self._explain(error, self.current)
        if problem != self._problem:  # logged once, not at every look
            logger.error("kept %s: %s", self._describe(self.current), problem)
        self._problem = problem

    def _follow(self) -> None:
        while not self._stopped.wait(self._period_s() or PAUSED_CHECK_S):
            if self._period_s():
                self.refresh()
