"""Adapter weights in main memory, between the files on disk and the slots of the device."""

import threading
from collections import OrderedDict
from typing import Any


class HostCache:
    """An LRU cache of weights by digest. Any thread may call it.

    Args:
        max_bytes: of all weights together; 0 keeps nothing.
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
        """Whether `num_bytes` more fit without an eviction."""
        return self._num_bytes + num_bytes <= self._max_bytes

    def get(self, digest: str) -> Any:
        """Return the weights. None if they are not here."""
        with self._lock:
            found = self._kept.get(digest)
            if found is None:
                return None
            self._kept.move_to_end(digest)
            return found[0]

    def put(self, digest: str, weights: Any, num_bytes: int) -> None:
        """Keep `weights`, and evict the least recently used ones for them.

        Args:
            num_bytes: of `weights`; with 0, or more than the whole cache, they are not kept.
        """
        with self._lock:
            if digest in self._kept or not 0 < num_bytes <= self._max_bytes:
                return
            self._kept[digest] = (weights, num_bytes)
            self._num_bytes += num_bytes
            while self._num_bytes > self._max_bytes:
                _, (_, freed) = self._kept.popitem(last=False)
                self._num_bytes -= freed

    def drop(self, digest: str) -> None:
        """Forget the weights, if they are here."""
        with self._lock:
            found = self._kept.pop(digest, None)
            if found is not None:
                self._num_bytes -= found[1]
