"""A local folder as the source of an adapter: regular files, and links of a hub cache only."""

import contextlib
import os
import stat
from pathlib import Path
from typing import Any

from adapters.validation import BUNDLE_FILES

_COPY = "copy the folder with `cp -rL`, and name the copy"


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
        hint = ""
        if (folder / "adapter_model.bin").is_file():
            hint = "; it holds adapter_model.bin: `python -m scripts.convert_adapter` first"
        raise SourceError(f"source {folder}: {name} is missing{hint}") from None
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
