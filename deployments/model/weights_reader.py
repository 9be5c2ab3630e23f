"""Reads adapter weights from the store into main memory: when asked for, or ahead of that."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from adapters.store import AdapterStore
from adapters.versions import AdapterVersion

logger = logging.getLogger(__name__)

# Adapters that are read at the same time. Parsing holds the interpreter lock, which the engine's
# thread needs at every step.
_MAX_READS = 16


class AdapterDecoder(Protocol):
    """What the adapters ask of a decoder. The last three run between two of its steps."""

    def read_adapter(self, directory: Path) -> Any:
        """Read a PEFT folder into weights that `install` takes."""

    def num_host_bytes(self, weights: Any) -> int:
        """Return the main memory that `weights` take; 0 if they are not worth keeping."""

    def install(self, name: str, weights: Any, *, probe: bool = True) -> None:
        """Make `weights` resident; `probe` checks that they change the logits."""

    def dry_run(self, name: str, weights: Any) -> None:
        """Raise what `install` would raise, and leave nothing resident."""

    def evict(self, name: str) -> None: ...


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


class WeightsReader:
    """Any thread may call it.

    Args:
        host: keeps what was read.
        verified: folders by digest whose checksums were compared a moment ago; the first read of
            each does not compare them again.
    """

    def __init__(
        self,
        store: AdapterStore,
        decoder: AdapterDecoder,
        host: HostCache,
        verified: Mapping[str, Path],
    ) -> None:
        self._store = store
        self._decoder = decoder
        self._host = host
        self._verified = dict(verified)
        self._reading = threading.BoundedSemaphore(_MAX_READS)
        self._unreadable: set[str] = set()  # digests that `prefetch` could not read

    def weights(self, version: AdapterVersion) -> Any:
        """Return the weights from main memory, or read them now, which may take long.

        Raises:
            StorageError, DamagedAdapter, EngineError, and what PEFT and safetensors raise.
        """
        weights = self._host.get(version.digest)
        if weights is None:
            with self._reading:
                folder = self._verified.pop(version.digest, None) or self._store.folder(version)
                weights = self._decoder.read_adapter(folder)
            self._host.put(version.digest, weights, self._decoder.num_host_bytes(weights))
        return weights

    def prefetch(self, version: AdapterVersion) -> None:
        """Read the weights if main memory has room for them without evicting others.

        A failure is logged once; a question for the version gets it again, as an error.
        """
        digest = version.digest
        if digest in self._host or digest in self._unreadable:
            return
        if self._host.has_room(version.num_bytes):
            try:
                self.weights(version)
            except Exception as error:  # the thread that reads ahead continues with the next one
                self._unreadable.add(digest)
                logger.warning("not read ahead: version %s: %s", version.version, one_line(error))

    def is_in_memory(self, version: AdapterVersion) -> bool:
        return version.digest in self._host

    def forget(self, version: AdapterVersion) -> None:
        """Drop what is kept of a version that left the catalogue."""
        self._host.drop(version.digest)
        self._verified.pop(version.digest, None)
        self._unreadable.discard(version.digest)


def one_line(error: Exception) -> str:
    """Return the error's text on one line of at most 500 characters, never an empty one."""
    return " ".join(str(error).split())[:500] or type(error).__name__
