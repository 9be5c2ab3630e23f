"""Replace a file in one step: a reader sees the old content or the new one, never a part; order
those who do."""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

UNFINISHED = ".new-"  # starts the names of files and folders that are not complete yet
LOCK_TIMEOUT_S = 30.0
_LOCK_POLL_S = 0.005


class FileCalls:
    """The calls to the file system that change something; tests make each one fail in turn."""

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
        """Set a later time than the last, by more than a file system rounds to."""
        young = max(time.time_ns(), path.stat().st_mtime_ns + 2 * 10**9)
        os.utime(path, ns=(young, young))

    def remove_file(self, file: Path) -> None:
        file.unlink(missing_ok=True)

    def remove_folder(self, folder: Path) -> None:
        shutil.rmtree(folder)


def write_atomically(file: Path, content: bytes, calls: FileCalls | None = None) -> None:
    """Write beside `file`, then rename; on the disk when it returns.

    Raises:
        OSError: it could not be written, and is as it was.
    """
    calls = calls or FileCalls()
    fresh = unfinished(file.parent)
    try:
        calls.write(fresh, content)
        calls.sync(fresh)
        calls.rename(fresh, file)
    except BaseException:
        with contextlib.suppress(OSError):
            calls.remove_file(fresh)
        raise
    calls.sync(file.parent)


def unfinished(folder: Path) -> Path:
    """Return a new name in `folder` for what is not complete yet."""
    return folder / f"{UNFINISHED}{uuid.uuid4().hex}"


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Keep others who lock `file` out of the block. A process that dies releases its lock.

    Raises:
        OSError: another process, which may hang, has held it for LOCK_TIMEOUT_S; or there are no
            locks on this file system.
    """
    lock = FileLock(file, mode=0o600, timeout=LOCK_TIMEOUT_S, poll_interval=_LOCK_POLL_S)
    try:
        lock.acquire()
    except Timeout:
        cause = f"another process has held {file.name} for {LOCK_TIMEOUT_S:g} s"
        raise OSError(errno.EBUSY, cause) from None
    except NotImplementedError:
        raise OSError(errno.ENOLCK, "this file system offers no locks") from None
    try:
        yield
    finally:
        lock.release()
