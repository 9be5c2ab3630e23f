"""Calls to a file system that may hang, as a file server that is gone does, with an end."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, TypeVar

from adapters.storage.protocol import StorageError

CALL_TIMEOUT_S = 10.0

T = TypeVar("T")


class Bounded:
    """Runs each call on a thread of its own, which stays behind if it hangs. While one hangs, the
    next ones fail at once. Any thread may use it.

    Args:
        place: what is called, for the message.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._hanging: Future[Any] | None = None

    def __call__(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, or raise what it raises.

        Raises:
            StorageError: it has not answered for CALL_TIMEOUT_S.
        """
        answer: Future[T] = Future()
        if self._hanging is None or self._hanging.done():
            threading.Thread(target=_do, args=(work, answer), name="bounded", daemon=True).start()
            if wait([answer], CALL_TIMEOUT_S).done:
                return answer.result()
            self._hanging = answer
        raise StorageError(f"{self._place}: has not answered for {CALL_TIMEOUT_S:g} s")


def _do(work: Callable[[], T], answer: "Future[T]") -> None:
    try:
        answer.set_result(work())
    except BaseException as error:
        answer.set_exception(error)
