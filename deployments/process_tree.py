"""The processes that descend from one that we started, followed over time.

Ray's daemons outlive their parents and are then nobody's children, so the tree is looked at again
and again and every process once seen in it is remembered, by pid and start time (a pid alone may
have been given to a stranger since). Linux: /proc.
"""

import os
import signal
import time
from pathlib import Path


class ProcessTree:
    """Knows `root` and everything that was ever seen below it."""

    def __init__(self, root: int) -> None:
        self._seen: dict[int, str] = {}  # pid -> start time, in clock ticks since boot
        table = _processes()
        if root in table:
            self._seen[root] = table[root][1]

    def refresh(self) -> None:
        """Look for new descendants."""
        table = _processes()
        known = {
            pid for pid, started in self._seen.items() if table.get(pid, (0, ""))[1] == started
        }
        grown = True
        while grown:
            found = {pid for pid, (parent, _) in table.items() if parent in known} - known
            known |= found
            grown = bool(found)
            self._seen |= {pid: table[pid][1] for pid in found}

    def alive(self, table: dict[int, tuple[int, str]] | None = None) -> list[int]:
        """Those of the tree that still run, by `table` or by a fresh look."""
        now = _processes() if table is None else table
        return [pid for pid, started in self._seen.items() if now.get(pid, (0, ""))[1] == started]

    def kill(self, timeout_s: float = 5.0) -> int:
        """SIGKILL what is left, wait for it to go; returns how many that were."""
        self.refresh()
        left = self.alive()
        deadline = time.monotonic() + timeout_s
        remaining = left
        while remaining and time.monotonic() < deadline:
            for pid in remaining:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
            self.refresh()
            remaining = self.alive()
        return len(left)


def _processes() -> dict[int, tuple[int, str]]:
    """pid -> (parent's pid, start time) of every process that runs (a zombie does not)."""
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if fields[0] != "Z":
            table[int(stat.parent.name)] = (int(fields[1]), fields[19])
    return table
