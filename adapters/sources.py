"""Where a new adapter comes from: a folder, the Hugging Face hub, or any URL that fsspec can read.

Two files are copied, within a size and a time; nothing else of the source is read. The copy is
ours, so a source that changes later changes nothing. Of a local folder, only regular files are read
and links of a hub cache.
"""

import contextlib
import functools
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from adapters.http_source import open_http
from adapters.storage.protocol import StorageError
from adapters.validation import (
    BUNDLE_FILES,
    CONFIG_FILE,
    MAX_BYTES,
    MAX_CONFIG_BYTES,
    seen_instead,
)

SCHEMES = ("file", "hf", "s3", "gs", "abfs", "https", "http")
_CHUNK = 2**20
_HUB_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_ID = re.compile(rf"(?P<repo>{_HUB_NAME}/{_HUB_NAME})(?:@(?P<revision>[\w./-]{{1,200}}))?")

_COPY = "copy the folder with `cp -rL`, and name the copy"

OpenUrl = Callable[[str], Any]
"""Returns a context manager that gives a file, opened for reading bytes."""


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """
    timeout_s: for the whole fetch.
    schemes: those that a URL may have.
    hosts: those that http and https may ask although their addresses are not public.
    """

    max_bytes: int = MAX_BYTES
    timeout_s: float = 120.0
    schemes: tuple[str, ...] = SCHEMES
    hosts: frozenset[str] = frozenset()


def check_source(source: str, schemes: Sequence[str] = SCHEMES) -> list[str]:
    """Return what is wrong with the way a source is named; empty if nothing is."""
    shown = ascii(source[:80])
    if not source or len(source) > 2048 or not source.isprintable():
        return [f"source {shown}: 1 to 2048 printable characters"]
    path = source
    if "://" in source:
        parts = urlsplit(source)
        if parts.scheme not in schemes:
            return [f"source: scheme '{parts.scheme[:20]}'; allowed are {', '.join(schemes)}"]
        if parts.username or parts.password or parts.query or parts.fragment:
            return ["source: a URL without user, password, query and fragment is expected"]
        if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
            return [f"source {shown}: file:// goes with an absolute path: file:///srv/adapter"]
        path = parts.netloc + parts.path
    elif _folder_of(source) is not None and "file" not in schemes:
        return [f"source {shown}: folders of the server are not allowed"]
    elif _folder_of(source) is None and "hf" not in schemes:
        return [f"source {shown}: the hub is not allowed; allowed are {', '.join(schemes)}"]
    if ".." in PurePosixPath(path).parts:
        return [f"source {shown}: '..' is not allowed in it"]
    is_hub = source.startswith("hf://") or ("://" not in source and _folder_of(source) is None)
    if is_hub and not _HUB_ID.fullmatch(source.removeprefix("hf://")):
        return [
            f"source {shown}: an absolute path, a folder that exists, org/name or "
            "org/name@revision of the Hugging Face hub, or a URL is expected"
        ]
    return []


def fetch(
    source: str, into: Path, limits: SourceLimits, *, open_url: OpenUrl | None = None
) -> None:
    """Copy adapter_config.json and adapter_model.safetensors of `source` into the folder `into`.

    Raises:
        SourceError: missing, too large, too slow, a link, not readable, or changed meanwhile.
        StorageError: there is no room for the copy.
    """
    problems = check_source(source, limits.schemes)
    if problems:
        raise SourceError(problems[0])
    open_url = open_url or functools.partial(_open_url, hosts=limits.hosts)
    outcome: Future[None] = Future()

    def work() -> None:
        try:
            _copy_files(source, into, limits, open_url)
            outcome.set_result(None)
        except Exception as error:
            outcome.set_exception(error)

    # A daemon thread: a source that hangs in a read is left behind, and does not hold up the exit.
    threading.Thread(target=work, name="fetch-adapter", daemon=True).start()
    try:
        outcome.result(limits.timeout_s)
    except (SourceError, StorageError):
        raise
    except Exception as error:
        if not outcome.done():
            raise SourceError(
                f"source {source}: not complete after {limits.timeout_s:.0f} s: try again, or "
                "copy it to a local folder first"
            ) from None
        raise SourceError(f"source {source}: {_named(error)}") from error


def _copy_files(source: str, into: Path, limits: SourceLimits, open_url: OpenUrl) -> None:
    deadline = time.monotonic() + limits.timeout_s
    folder = _folder_of(source)
    before = None if folder is None else file_times(folder)
    for name in BUNDLE_FILES:
        max_bytes = MAX_CONFIG_BYTES if name == CONFIG_FILE else limits.max_bytes
        opening = open_url(_url_of(source, name)) if folder is None else open_file(folder, name)
        with opening as opened:
            _copy(opened, into / name, max_bytes, deadline)
    if folder is not None and file_times(folder) != before:
        raise SourceError(
            f"source {source}: changed while it was read: try again when it is complete"
        )


def _folder_of(source: str) -> Path | None:
    """Return the local folder that `source` names. One that exists wins over a hub id."""
    if source.startswith(("/", "file://")):
        return Path(source.removeprefix("file://"))
    return Path(source) if "://" not in source and Path(source).is_dir() else None


def _url_of(source: str, name: str) -> str:
    hub = _HUB_ID.fullmatch(source.removeprefix("hf://"))
    if hub is None:
        return f"{source.rstrip('/')}/{name}"
    revision = f"@{quote(hub['revision'], safe='')}" if hub["revision"] else ""
    return f"hf://{hub['repo']}{revision}/{name}"


def _open_url(url: str, hosts: frozenset[str]) -> Any:
    if url.startswith(("http://", "https://")):
        return open_http(url, hosts)
    import fsspec

    # A file system that was used before may remember what the source held then.
    return fsspec.open(url, "rb", skip_instance_cache=True)


def _copy(opened: Any, target: Path, max_bytes: int, deadline: float) -> None:
    try:
        with open(target, "xb") as copy:
            for chunk in _chunks(opened, target.name, max_bytes, deadline):
                copy.write(chunk)
    except OSError as error:  # not from reading: that is a SourceError
        raise StorageError(f"{target}: cannot be written ({error.strerror})") from error


def _chunks(opened: Any, name: str, max_bytes: int, deadline: float) -> Iterator[bytes]:
    size = getattr(opened, "size", None)  # of remote files that know it
    if isinstance(size, int) and size > max_bytes:
        raise SourceError(f"{name}: {size} bytes, more than the {max_bytes} bytes allowed")
    total = 0
    while True:
        try:
            chunk = opened.read(min(_CHUNK, max_bytes - total + 1))
        except OSError as error:
            raise SourceError(f"{name}: {_named(error)}") from error
        if not chunk:
            return
        total += len(chunk)
        if total > max_bytes:
            raise SourceError(f"{name}: more than the {max_bytes} bytes allowed")
        if time.monotonic() > deadline:
            raise SourceError(f"{name}: not complete in time: the source is too slow")
        yield chunk


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


class SourceError(ValueError):
    """The source cannot be read as it was named; nothing of it was kept."""


def open_file(folder: Path, name: str) -> Any:
    """Open a regular file of a folder that is not a link, for reading bytes.

    A file may be a link into `blobs/` of the Hugging Face cache that the folder is a snapshot of.

    Raises:
        SourceError: it is missing, another link, or not a regular file.
    """
    if folder.is_symlink():
        raise SourceError(f"source {folder}: is a symbolic link: name the folder itself")
    file = _blob_of(folder / name) or folder / name
    try:
        # Opened once and looked at through that; a pipe without a writer does not block.
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SourceError(f"source {folder}: {name} is missing{seen_instead(folder)}") from None
    except OSError as error:
        kind = f"is a symbolic link: {_COPY}" if file.is_symlink() else error.strerror
        raise SourceError(f"source {folder}: {name} {kind}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"source {folder}: {name} is not a regular file")
    return open(descriptor, "rb")


def _blob_of(file: Path) -> Path | None:
    """Return the file behind a link from `<cache>/snapshots/<revision>/` into `<cache>/blobs/`."""
    snapshots = file.parent.parent
    if not file.is_symlink() or snapshots.name != "snapshots":
        return None
    target = file.resolve()
    blobs = snapshots.parent.resolve() / "blobs"  # not resolved: it may not be a link itself
    return target if target.parent == blobs else None


def file_times(folder: Path) -> list[tuple[int, int, int]]:
    """Return what changes when a file of the folder does."""
    found = []
    for name in BUNDLE_FILES:
        with contextlib.suppress(OSError):  # opening it says why
            stats = os.stat(folder / name)
            found.append((stats.st_ino, stats.st_size, stats.st_mtime_ns))
    return found
