"""Adapters' weights kept in memory after they were read; the least recently used go first."""

import threading
from collections import OrderedDict
from typing import Any


class HostCache:
    """
    Args:
        max_bytes: 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._num_bytes = 0

    def __contains__(self, digest: str) -> bool:
        with self._lock:
            return digest in self._kept

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def has_room(self, num_bytes: int) -> bool:
        """Whether so many more fit without a farewell."""
        return self._num_bytes + num_bytes <= self._max_bytes

    def get(self, digest: str) -> Any:
        """The weights, or None."""
        with self._lock:
            found = self._kept.get(digest)
            if found is None:
                return None
            self._kept.move_to_end(digest)
            return found[0]

    def put(self, digest: str, weights: Any, num_bytes: int) -> None:
        with self._lock:
            if digest in self._kept or not 0 < num_bytes <= self._max_bytes:
                return
            self._kept[digest] = (weights, num_bytes)
            self._num_bytes += num_bytes
            while self._num_bytes > self._max_bytes:
                _, (_, freed) = self._kept.popitem(last=False)
                self._num_bytes -= freed

    def drop(self, digest: str) -> None:
        with self._lock:
            found = self._kept.pop(digest, None)
            if found is not None:
                self._num_bytes -= found[1]
