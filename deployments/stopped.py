"""End processes of Serve that somebody has stopped (SIGSTOP): no message ends those any more.

Ray ends a replica that hangs with a message, which a stopped process never reads; its memory, its
port and its answers would stay. SIGKILL is what it cannot hold up.
"""

import time
from collections.abc import Callable, Iterable

import psutil

STOPPED_S = 15.0
_LONGEST_GAP_S = 12.0  # between two looks; after a longer one the watch itself stood still


class StoppedProcesses:
    """Those that were stopped at each look of late. Look every second, every ten at the least.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_at = clock()
        self._since: dict[psutil.Process, float] = {}

    def end(self, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
        """Kill those of these processes that have been stopped for STOPPED_S; return them.

        Those that a debugger holds are not meant.
        """
        now = self._clock()
        before = self._since if now - self._looked_at <= _LONGEST_GAP_S else {}
        self._looked_at = now
        self._since = {p: before.get(p, now) for p in processes if _is_stopped(p)}
        return [p for p, since in self._since.items() if now - since >= STOPPED_S and _killed(p)]


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def _killed(process: psutil.Process) -> bool:
    try:
        process.kill()
    except psutil.Error:
        return False
    return True
