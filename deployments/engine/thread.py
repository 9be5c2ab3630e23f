"""Run everything that torch computes in a process on one thread: loading, probing, stepping.

Torch's OpenMP runtime keeps a pool of threads for each thread that calls it. With two pools there
are more threads than cores, libgomp waits in the kernel at every barrier instead of spinning, and a
decoding step on the CPU takes 1.6 times as long.
"""

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

# Turns that a thread of torch's pool spins before it sleeps. libgomp's own 300,000 cost a step many
# times its length where other processes want the cores, and gain nothing where they are free.
_SPIN_COUNT = "2000"

ResultT = TypeVar("ResultT")


class TorchThread:
    """Run tasks one after the other. A daemon, so it never delays the end of the process."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def submit(self, task: Callable[[], ResultT]) -> "Future[ResultT]":
        """Run `task` after those that were submitted before it."""
        future: Future[ResultT] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

        self._tasks.put(run)
        return future

    def close(self) -> None:
        """End the thread after the tasks that were submitted."""
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # it holds what it returned


def use_cores_on(thread: TorchThread, num_threads: int | None) -> None:
    """Let torch use the cores on `thread`, and open no pool of threads for any other thread.

    Ray would leave it one core for each of the replica's num_cpus. A thread keeps the number that
    torch had when it first asked for it, so the threads to come get the 1 that is set last.

    Args:
        num_threads: None for every core that this process may use.
    """
    # libgomp reads it when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
    import torch

    def use_cores() -> None:
        torch.set_num_threads(num_threads or len(os.sched_getaffinity(0)))
        torch.get_num_threads()  # the thread takes the number over now

    thread.submit(use_cores).result()
    torch.set_num_threads(1)
