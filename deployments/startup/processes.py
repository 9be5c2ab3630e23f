"""The processes that descend from one that we started, followed over time.

Ray's daemons outlive their parents and are then nobody's children, so the tree is looked at again
and again and every process once seen in it is remembered, by pid and start time (a pid alone may
have been given to a stranger since). A daemon that lost its parent between two looks is still known
by its session, when the root leads one. Linux: /proc.
"""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple


class _Process(NamedTuple):
    parent: int
    session: int
    started: str  # in clock ticks since boot


class ProcessTree:
    """Knows `root` and everything that was ever seen below it, or in the session that it leads."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[int, str] = {}  # pid -> start time
        table = _processes()
        if root in table:
            self._seen[root] = table[root].started

    def refresh(self) -> None:
        """Look for new descendants."""
        self._look(_processes())

    def alive(self) -> list[int]:
        """Those of the tree that still run."""
        return self._look(_processes())

    def kill(self, timeout_s: float = 5.0) -> int:
        """SIGKILL what is left, wait for it to go; returns how many that were."""
        killed = set()
        deadline = time.monotonic() + timeout_s
        while (left := self.alive()) and time.monotonic() < deadline:
            killed.update(left)
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        return len(killed)

    def _look(self, table: dict[int, _Process]) -> list[int]:
        """Add what is new in `table`; the pids of the tree that are in it."""
        alive = {pid for pid in self._seen if self._is_same(pid, table)}
        if self._root not in table or self._root in alive:  # the number is still ours
            alive |= {pid for pid, process in table.items() if process.session == self._root}
        grown = True
        while grown:
            found = {pid for pid, process in table.items() if process.parent in alive} - alive
            alive |= found
            grown = bool(found)
        self._seen |= {pid: table[pid].started for pid in alive}
        return sorted(alive)

    def _is_same(self, pid: int, table: dict[int, _Process]) -> bool:
        return pid in table and table[pid].started == self._seen[pid]


def _processes() -> dict[int, _Process]:
    """Every process that runs, by pid (a zombie does not run)."""
    table = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if fields[0] not in ("Z", "X"):
            table[int(stat.parent.name)] = _Process(int(fields[1]), int(fields[3]), fields[19])
    return table
