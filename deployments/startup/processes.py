"""The processes that descend from one that we started, followed over time.

Ray's daemons outlive their parents and then belong to nobody, so every process once seen in the
tree is remembered (psutil compares pid and start time, because a pid may be given to a stranger
later). A daemon that lost its parent between two looks is found by its session, if the root leads
one.
"""

import contextlib
import os
import time
from collections.abc import Callable, Collection

import psutil


class ProcessTree:
    """Knows `root` and everything that was ever seen below it, or in the session that it leads."""

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root) if psutil.pid_exists(root) else None
        self._seen: set[psutil.Process] = {self._root} if self._root else set()

    def refresh(self) -> None:
        """Look for new descendants."""
        self._look()

    def alive(self) -> list[int]:
        """Look for new descendants and return the pids of the tree that still run."""
        return sorted(process.pid for process in self._look())

    def named(self, names: Collection[str]) -> list[psutil.Process]:
        """Return the processes seen in the tree that have one of these names."""
        return self._matching(lambda process: process.name() in names)

    def titled(self, titles: tuple[str, ...]) -> list[psutil.Process]:
        """Look for new descendants and return those whose title begins with one of these."""
        return self._matching(lambda process: "".join(process.cmdline()[:1]).startswith(titles))

    def _matching(self, is_meant: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        found = []
        for process in self._look():
            with contextlib.suppress(psutil.Error):
                if is_meant(process):
                    found.append(process)
        return found

    def kill(self, timeout_s: float = 5.0) -> int:
        """Kill what is left and wait until it is gone; return how many processes that were."""
        killed: set[psutil.Process] = set()
        deadline = time.monotonic() + timeout_s
        while (left := self._look()) and time.monotonic() < deadline:
            killed |= left
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=max(0.0, deadline - time.monotonic()))
        return len(killed)

    def _look(self) -> set[psutil.Process]:
        for process in {*self._seen, *self._session()}:
            self._seen.add(process)
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.ppid() not in {other.pid for other in self._seen}:  # else seen from it
                    self._seen.update(process.children(recursive=True))
        self._seen = {process for process in self._seen if runs(process)}
        return set(self._seen)

    def _session(self) -> set[psutil.Process]:
        """Return what belongs to the session of the root, unless its pid is a stranger's by now."""
        root = self._root
        if root is None or (psutil.pid_exists(root.pid) and not root.is_running()):
            return set()
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == root.pid:
                    found.add(process)
        return found


def runs(process: psutil.Process) -> bool:
    """Return whether it exists and is more than a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
