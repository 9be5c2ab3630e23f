"""Where the live state lies: a document that is compared and swapped, and folders named by content.

`LocalStorage` is a folder that every node sees; object_state.py has the one for object stores.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from adapters.validation import CONFIG_FILE, WEIGHTS_FILE

CATALOG = "catalog.yaml"
WEIGHTS = "weights"
BUNDLE_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_UNFINISHED = ".new-"


class StorageError(OSError):
    """The state cannot be read or written; says where and why."""


class PreconditionFailed(Exception):
    """The document is no longer what the writer had read."""


class CatalogStorage(Protocol):
    """A tag names a content of the document; None: there is no document yet."""

    @property
    def location(self) -> str: ...

    def read(self) -> tuple[bytes, str] | None:
        """The document and its tag."""

    def stamp(self) -> str | None:
        """Cheap, and changes whenever the document does."""

    def put_if_match(self, content: bytes, tag: str | None) -> None:
        """Replace the document that has this tag: whole, or not at all.

        Raises:
            PreconditionFailed: somebody else replaced it first.
            StorageError: it cannot be written.
        """

    def put_bundle(self, digest: str, folder: Path) -> str | None:
        """Keep an adapter's two files under `digest`; a second time changes nothing.

        Returns:
            A mark for `undo_put`; None: the bundle was there already, or cannot be taken back.
        """

    def undo_put(self, digest: str, mark: str) -> None:
        """Delete what `put_bundle` made, unless somebody put the same bundle since."""

    def fetch_bundle(self, digest: str, cache: Path) -> Path:
        """A local folder that holds the bundle.

        Raises:
            StorageError: it is not there, or damaged.
        """

    def collect(self, keep: frozenset[str], *, older_than_s: float) -> list[str]:
        """Delete bundles that are not in `keep`, and unfinished ones; returns their names."""


class FileCalls:
    """What LocalStorage asks of the file system; tests make each call fail in turn."""

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, file: Path, content: bytes) -> None:
        with open(file, "xb") as opened:
            opened.write(content)

    def copy(self, source: Path, target: Path) -> None:
        shutil.copyfile(source, target)

    def sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def touch(self, path: Path) -> None:
        """Younger, and by more than a file system rounds to: who touched last can be told."""
        young = max(time.time_ns(), path.stat().st_mtime_ns + 2 * 10**9)
        os.utime(path, ns=(young, young))

    def remove_file(self, file: Path) -> None:
        file.unlink(missing_ok=True)

    def remove_folder(self, folder: Path) -> None:
        shutil.rmtree(folder)


class LocalStorage:
    """A folder. A lock orders the writers, a rename replaces the document.

    Args:
        folder: absolute; made on the first change, for its owner only.
    """

    def __init__(self, folder: Path, calls: FileCalls | None = None) -> None:
        self._folder = folder
        self._file = folder / CATALOG
        self._weights = folder / WEIGHTS
        self._calls = calls or FileCalls()

    @property
    def location(self) -> str:
        return str(self._folder)

    def read(self) -> tuple[bytes, str] | None:
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._file}: cannot be read ({error.strerror})") from None
        return content, hashlib.sha256(content).hexdigest()

    def stamp(self) -> str | None:
        try:
            found = os.stat(self._file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._file}: cannot be read ({error.strerror})") from None
        return f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"

    def put_if_match(self, content: bytes, tag: str | None) -> None:
        with self._changing(), self._locked():
            found = self.read()
            if (found[1] if found else None) != tag:
                raise PreconditionFailed
            fresh = self._folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
            try:
                self._calls.write(fresh, content)
                self._calls.sync(fresh)
                self._calls.rename(fresh, self._file)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._calls.remove_file(fresh)
                raise
            self._calls.sync(self._folder)

    def put_bundle(self, digest: str, folder: Path) -> str | None:
        target = self._weights / digest
        mark = None
        with self._changing():
            self._calls.make_folder(self._weights)
            with self._locked():
                if target.is_dir():  # a rename put it there, so it is whole
                    self._calls.touch(target)
                    return None
            fresh = self._weights / f"{_UNFINISHED}{uuid.uuid4().hex}"
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
                        mark = _mark(target)
                self._calls.sync(self._weights)
            finally:
                if fresh.is_dir():
                    with contextlib.suppress(OSError):
                        self._calls.remove_folder(fresh)
        return mark

    def undo_put(self, digest: str, mark: str) -> None:
        target = self._weights / digest
        with self._changing(), self._locked():
            if target.is_dir() and _mark(target) == mark:
                self._remove_bundle(target)

    def fetch_bundle(self, digest: str, cache: Path) -> Path:
        folder = self._weights / digest
        if not folder.is_dir():
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
            for leftover in self._folder.glob(f"{_UNFINISHED}*"):
                if leftover.stat().st_mtime < limit:
                    self._calls.remove_file(leftover)
        return gone

    def _remove_bundle(self, found: Path) -> None:
        doomed = self._weights / f"{_UNFINISHED}{uuid.uuid4().hex}"
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

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Not through FileCalls: a process that dies lets go of its lock."""
        descriptor = os.open(self._folder / "catalog.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _mark(folder: Path) -> str:
    return str(folder.stat().st_mtime_ns)
