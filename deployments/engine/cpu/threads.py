"""Run one compiled function on several threads at a time."""

import queue
import threading
from collections.abc import Callable

Task = Callable[[int], None]


class Threads:
    """Keep helpers that sleep between two calls. They are daemons."""

    def __init__(self) -> None:
        self._helpers: list[queue.SimpleQueue[_Call]] = []

    def run(self, task: Task, count: int) -> None:
        """Call task(0) here and task(1) ... task(count - 1) on helpers, and wait for all.

        A helper that has not begun when task(0) returns is not waited for, and does not begin. So
        the task must be complete when any of its calls returns.
        """
        while len(self._helpers) < count - 1:
            self._helpers.append(_start_helper(len(self._helpers) + 1))
        calls = [_Call(task) for _ in range(count - 1)]
        for helper, call in zip(self._helpers, calls, strict=False):
            helper.put(call)
        task(0)
        for call in calls:
            call.end()


class _Call:
    """Run a task once, unless it was ended before."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._begun = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()

    def run(self, number: int) -> None:
        if self._begun.acquire(blocking=False):
            try:
                self._task(number)
            finally:
                self._done.release()

    def end(self) -> None:
        """Wait for the task if it has begun."""
        if not self._begun.acquire(blocking=False):
            self._done.acquire()


def _start_helper(number: int) -> "queue.SimpleQueue[_Call]":
    calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()

    def work() -> None:
        while True:
            calls.get().run(number)

    threading.Thread(target=work, name=f"decoder-{number}", daemon=True).start()
    return calls
