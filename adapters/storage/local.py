"""The catalogue and the adapters' files in a folder that every node sees."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from adapters.storage.atomic import UNFINISHED, FileCalls, locked, unfinished, write_atomically
from adapters.storage.bounded import Bounded
from adapters.storage.protocol import CATALOG, WEIGHTS, PreconditionFailed, StorageError
from adapters.validation import BUNDLE_FILES

T = TypeVar("T")


class LocalStorage:
    """A lock orders the writers, a rename replaces the document.

    Args:
        folder: absolute; made on the first change, for its owner only.
    """

    def __init__(self, folder: Path, calls: FileCalls | None = None) -> None:
        self._folder = folder
        self._file = folder / CATALOG
        self._weights = folder / WEIGHTS
        self._calls = calls or FileCalls()
        self._bounded = Bounded(folder)

    @property
    def location(self) -> str:
        return str(self._folder)

    def read(self) -> tuple[bytes, str] | None:
        content = self._looked(self._file.read_bytes)
        return None if content is None else (content, hashlib.sha256(content).hexdigest())

    def weak_etag(self) -> str | None:
        found = self._looked(lambda: os.stat(self._file))
        return None if found is None else f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"

    def _looked(self, look: Callable[[], T]) -> T | None:
        """Return what a look at the document finds; None if there is none yet."""
        try:
            return self._bounded(look)
        except FileNotFoundError:
            return None
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"{self._file}: cannot be read ({error.strerror})") from None

    def put_if_match(self, content: bytes, etag: str | None) -> None:
        with self._changing(), self._locked():
            found = self.read()
            if (found[1] if found else None) != etag:
                raise PreconditionFailed
            write_atomically(self._file, content, self._calls)

    def put_bundle(self, digest: str, folder: Path) -> str | None:
        target = self._weights / digest
        token = None
        with self._changing():
            self._calls.make_folder(self._weights)
            with self._locked():
                if target.is_dir():  # a rename put it there, so it is whole
                    self._calls.touch(target)
                    return None
            fresh = unfinished(self._weights)
            try:
                self._calls.make_folder(fresh)
                for name in BUNDLE_FILES:
                    self._calls.copy(folder / name, fresh / name)
                    self._calls.sync(fresh / name)
                self._calls.sync(fresh)
                with self._locked():
                    if target.is_dir():
                        self._calls.touch(target)
                    else:
                        self._calls.rename(fresh, target)
                        token = _token(target)
                self._calls.sync(self._weights)
            finally:
                if fresh.is_dir():
                    with contextlib.suppress(OSError):
                        self._calls.remove_folder(fresh)
        return token

    def undo_put(self, digest: str, token: str) -> None:
        target = self._weights / digest
        with self._changing(), self._locked():
            if target.is_dir() and _token(target) == token:
                self._remove_bundle(target)

    def spare(self, digest: str) -> None:
        self._calls.touch(self._weights / digest)

    def fetch_bundle(self, digest: str, cache: Path) -> Path:
        folder = self._weights / digest
        if not self._bounded(folder.is_dir):
            raise StorageError(f"{folder}: is missing; every node must see the state folder")
        return folder

    def collect(self, keep: frozenset[str], *, older_than_s: float) -> list[str]:
        limit = time.time() - older_than_s
        gone = []
        if not self._weights.is_dir():
            return []
        with self._changing(), self._locked():
            for found in sorted(self._weights.iterdir()):
                if found.name not in keep and found.stat().st_mtime < limit:
                    self._remove_bundle(found)
                    gone.append(found.name)
            for leftover in self._folder.glob(f"{UNFINISHED}*"):
                if leftover.stat().st_mtime < limit:
                    self._calls.remove_file(leftover)
        return gone

    def _remove_bundle(self, found: Path) -> None:
        doomed = unfinished(self._weights)
        self._calls.rename(found, doomed)  # a reader sees it whole or not at all
        self._calls.remove_folder(doomed)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            self._calls.make_folder(self._folder)
            yield
        except StorageError:
            raise
        except OSError as error:
            cause = error.strerror or type(error).__name__
            raise StorageError(f"{self._folder}: cannot be changed ({cause})") from error

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """Order the writers. Not through FileCalls, which fail where a process dies."""
        return locked(self._folder / "catalog.lock")


def _token(folder: Path) -> str:
    return str(folder.stat().st_mtime_ns)
