"""Where a new adapter comes from: a folder, the Hugging Face hub, or any URL that fsspec can read.

Two files are copied, within a size and a time; nothing else of the source is read. The copy is
ours, so a source that changes later changes nothing.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from adapters.source_folder import SourceError, file_times, open_file
from adapters.storage.protocol import StorageError
from adapters.validation import BUNDLE_FILES, CONFIG_FILE, MAX_BYTES, MAX_CONFIG_BYTES

SCHEMES = ("file", "hf", "s3", "gs", "abfs", "https", "http")
_CHUNK = 2**20
_HUB_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
_HUB_ID = re.compile(rf"(?P<repo>{_HUB_NAME}/{_HUB_NAME})(?:@(?P<revision>[\w./-]{{1,200}}))?")

OpenUrl = Callable[[str], Any]
"""Returns a context manager that gives a file, opened for reading bytes."""


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """`timeout_s`: for the whole fetch."""

    max_bytes: int = MAX_BYTES
    timeout_s: float = 120.0


def check_source(source: str) -> list[str]:
    """Return what is wrong with the way a source is named; empty if nothing is."""
    shown = ascii(source[:80])
    if not source or len(source) > 2048 or not source.isprintable():
        return [f"source {shown}: 1 to 2048 printable characters"]
    path = source
    if "://" in source:
        parts = urlsplit(source)
        if parts.scheme not in SCHEMES:
            return [f"source: scheme '{parts.scheme[:20]}'; allowed are {', '.join(SCHEMES)}"]
        if parts.username or parts.password or parts.query or parts.fragment:
            return ["source: a URL without user, password, query and fragment is expected"]
        if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
            return [f"source {shown}: file:// goes with an absolute path: file:///srv/adapter"]
        path = parts.netloc + parts.path
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
    problems = check_source(source)
    if problems:
        raise SourceError(problems[0])
    outcome: Future[None] = Future()

    def work() -> None:
        try:
            _copy_files(source, into, limits, open_url or _open_url)
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


def _open_url(url: str) -> Any:
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
