"""Where a new adapter comes from: a folder, a Hugging Face id, or any URL that fsspec can read.

Two files are taken, within a size and a time; nothing else of the source is looked at. What was
fetched lies in a folder of ours, so a source that changes later changes nothing.
"""

import contextlib
import os
import queue
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from adapters.storage.local import BUNDLE_FILES, StorageError
from adapters.validation import CONFIG_FILE, MAX_BYTES, MAX_CONFIG_BYTES

SCHEMES = ("file", "hf", "s3", "gs", "abfs", "https", "http")
_CHUNK = 2**20
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

HubDownload = Callable[..., str]


class SourceError(ValueError):
    """The source cannot be had as it was named; nothing of it was kept."""


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """`timeout_s`: for the whole fetch."""

    max_bytes: int = MAX_BYTES
    timeout_s: float = 120.0


def check_source(source: str) -> list[str]:
    """What is wrong with the way a source is named; empty: nothing."""
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
    if "://" not in source and not source.startswith("/") and not _HUB_ID.fullmatch(source):
        return [f"source {shown}: an absolute path, org/name of the Hugging Face hub, or a URL"]
    return []


def fetch(
    source: str,
    into: Path,
    limits: SourceLimits,
    *,
    hub_download: HubDownload | None = None,
    open_url: Callable[[str], Any] | None = None,
) -> None:
    """Copy adapter_config.json and adapter_model.safetensors of `source` into the folder `into`.

    A source that hangs is left behind in a thread of its own when the time is up.

    Raises:
        SourceError: missing, too large, too slow, a link, not readable, or changed meanwhile.
        StorageError: no room for the copy.
    """
    problems = check_source(source)
    if problems:
        raise SourceError(problems[0])
    deadline = time.monotonic() + limits.timeout_s
    outcome: queue.Queue[Exception | None] = queue.Queue()

    def work() -> None:
        try:
            before = _stamps(source)
            for name in BUNDLE_FILES:
                allowed = MAX_CONFIG_BYTES if name == CONFIG_FILE else limits.max_bytes
                with _open(source, name, hub_download, open_url) as opened:
                    _copy(opened, into / name, allowed, deadline)
            if _stamps(source) != before:
                raise SourceError(
                    f"source {source}: changed while it was read: try again when it is complete"
                )
            outcome.put(None)
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=work, name="fetch-adapter", daemon=True).start()
    try:
        failure = outcome.get(timeout=limits.timeout_s)
    except queue.Empty:
        raise SourceError(
            f"source {source}: not complete after {limits.timeout_s:.0f} s: try again, or copy it "
            "to a nearer place first"
        ) from None
    if isinstance(failure, SourceError | StorageError):
        raise failure
    if failure is not None:
        raise SourceError(
            f"source {source}: {type(failure).__name__}: {str(failure)[:300]}"
        ) from failure


@contextlib.contextmanager
def _open(
    source: str,
    name: str,
    hub_download: HubDownload | None,
    open_url: Callable[[str], Any] | None,
) -> Any:
    folder = _plain_folder(source)
    if folder is not None:
        with _open_plain(folder, name) as opened:
            yield opened
    elif source.startswith("hf://") or "://" not in source:
        download = hub_download or _from_hub
        with open(download(source.removeprefix("hf://"), name), "rb") as opened:
            yield opened
    else:
        with (open_url or _from_url)(f"{source.rstrip('/')}/{name}") as opened:
            yield opened


def _plain_folder(source: str) -> Path | None:
    if source.startswith("/") or source.startswith("file://"):
        return Path(source.removeprefix("file://"))
    return None


def _stamps(source: str) -> list[tuple[int, int, int]]:
    """What changes when a file of a folder does; for what is no folder, nothing."""
    folder = _plain_folder(source)
    stamps: list[tuple[int, int, int]] = []
    if folder is None:
        return stamps
    for name in BUNDLE_FILES:
        with contextlib.suppress(OSError):  # whoever opens it says so
            found = os.lstat(folder / name)
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return stamps


def _open_plain(folder: Path, name: str) -> Any:
    """A regular file in a folder that is no link; opened once, and looked at through that."""
    if folder.is_symlink():
        raise SourceError(f"source {folder}: is a symbolic link: name the folder itself")
    file = folder / name
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        hint = ""
        if (folder / "adapter_model.bin").is_file():
            hint = "; it holds adapter_model.bin: `python -m scripts.convert_adapter` first"
        raise SourceError(f"source {folder}: {name} is missing{hint}") from None
    except OSError as error:
        kind = "is a symbolic link" if file.is_symlink() else error.strerror
        raise SourceError(f"source {folder}: {name} {kind}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"source {folder}: {name} is no regular file")
    return open(descriptor, "rb")


def _from_hub(repo: str, name: str) -> str:
    from huggingface_hub import hf_hub_download

    repo_id, _, revision = repo.partition("@")
    return str(hf_hub_download(repo_id, name, revision=revision or None))


def _from_url(url: str) -> Any:
    import fsspec

    return fsspec.open(url, "rb")


def _copy(opened: Any, target: Path, max_bytes: int, deadline: float) -> None:
    try:
        with open(target, "xb") as copy:
            for chunk in _chunks(opened, target.name, max_bytes, deadline):
                copy.write(chunk)
    except OSError as error:  # not from reading: that is a SourceError
        raise StorageError(f"{target}: cannot be written ({error.strerror})") from error


def _chunks(opened: Any, name: str, max_bytes: int, deadline: float) -> Iterator[bytes]:
    total = 0
    while True:
        try:
            chunk = opened.read(_CHUNK)
        except OSError as error:
            raise SourceError(f"{name}: {type(error).__name__}: {str(error)[:300]}") from error
        if not chunk:
            return
        total += len(chunk)
        if total > max_bytes:
            raise SourceError(f"{name}: more than the {max_bytes} bytes allowed")
        if time.monotonic() > deadline:
            raise SourceError(f"{name}: not complete in time: the source is too slow")
        yield chunk
