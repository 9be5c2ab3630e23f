"""Versions of the artefact in one folder, one of them current: publish, roll back, follow.

    <folder>/current.json            {"version", "previous": [...]}: the newest of `previous` last
    <folder>/versions/<version>/     an artefact each, never changed once written
    <folder>/.versions.lock          held by the one process that changes the versions

Replicas of the router compare `etag` every few seconds, so a change reaches every replica that
sees the folder. A folder that is an artefact itself has one version.
"""

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock

from router.artefact import (
    MANIFEST,
    ArtefactError,
    artefact_error,
    checked_bytes,
    load_artefact,
    read_manifest,
)

CURRENT = "current.json"
VERSIONS = "versions"
LOCK = ".versions.lock"
LOCK_TIMEOUT_S = 60  # to copy and load an artefact takes about a second
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,99}")


@dataclass(frozen=True, slots=True)
class Current:
    """`previous`: versions that were current before, oldest first."""

    version: str
    previous: tuple[str, ...]


def resolve(folder: Path) -> Path:
    """Return the artefact to serve: `folder` itself, or its current version.

    Raises:
        ArtefactError: current.json is damaged.
    """
    if (folder / MANIFEST).is_file() or not (folder / CURRENT).is_file():
        return folder  # reading an empty folder raises
    return folder / VERSIONS / read_current(folder).version


def is_to_come(folder: Path) -> bool:
    """Return whether `folder` is a place for versions that has none yet: missing, or empty."""
    try:
        return all(path.name in (LOCK, VERSIONS) for path in folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False


def etag(folder: Path) -> str:
    """Return a text that changes with the artefact to serve; quick to ask every few seconds.

    Raises:
        ArtefactError: there is no artefact, or its manifest cannot be read.
    """
    artefact = resolve(folder)
    return f"{artefact}@{read_manifest(artefact / MANIFEST).get('version')}"


def read_current(folder: Path) -> Current:
    """Read current.json.

    Raises:
        ArtefactError: the file is missing or damaged.
    """
    file = folder / CURRENT
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        current = Current(str(found["version"]), tuple(map(str, found["previous"])))
    except FileNotFoundError:
        raise artefact_error(file, "it is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise artefact_error(file, f"it cannot be read ({error!r})") from None
    for version in (current.version, *current.previous):
        if not _SAFE.fullmatch(version):
            raise artefact_error(file, f"{version!r} is not a version's name")
    return current


def publish(artefact: Path, folder: Path) -> str:
    """Copy an artefact into `folder` as a new version and make it current; returns the version.

    Raises:
        ArtefactError: the artefact is damaged, another one has its version's name, or `folder`
            is an artefact itself.
    """
    if (folder / MANIFEST).is_file():
        raise ArtefactError(
            f"router artefact: {folder}: it is an artefact itself; versions need a folder that "
            "holds nothing else: give another one (and set router.artefact to it)"
        )
    loaded = load_artefact(artefact)
    for name in loaded.manifest["files"]:  # also those that only scripts read
        checked_bytes(artefact, loaded.manifest, name)
    if not _SAFE.fullmatch(loaded.version):
        raise artefact_error(artefact / MANIFEST, f"{loaded.version!r} is not a version's name")
    target = folder / VERSIONS / loaded.version
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        _copy(artefact, target)
        before = read_current(folder) if (folder / CURRENT).is_file() else None
        if before is None or before.version != loaded.version:
            previous = (*before.previous, before.version) if before else ()
            _write_current(folder, Current(loaded.version, previous))
    return loaded.version


def roll_back(folder: Path) -> str:
    """Make the version before the current one current again; returns it.

    Raises:
        ArtefactError: there is no earlier version, or it is damaged.
    """
    read_current(folder)  # a folder without versions gets no lock file
    with _lock(folder):
        current = read_current(folder)
        if not current.previous:
            raise ArtefactError(
                f"router artefact: {folder / CURRENT}: there is no version before {current.version}"
            )
        earlier = current.previous[-1]
        load_artefact(folder / VERSIONS / earlier)
        _write_current(folder, Current(earlier, current.previous[:-1]))
    return earlier


def _lock(folder: Path) -> BaseFileLock:
    """Return the lock of publish and roll_back: without it, one could lose the other's change."""
    return FileLock(folder / LOCK, timeout=LOCK_TIMEOUT_S)


def _copy(artefact: Path, target: Path) -> None:
    """Copy the artefact to `target`, whole or not at all; check what is there already."""
    if target.exists():
        if read_manifest(target / MANIFEST) != read_manifest(artefact / MANIFEST):
            raise artefact_error(target, f"another artefact is already called {target.name}")
        load_artefact(target)
        return
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
        fresh = Path(scratch) / target.name
        shutil.copytree(artefact, fresh)
        fresh.rename(target)


def _write_current(folder: Path, current: Current) -> None:
    found = {"version": current.version, "previous": list(current.previous)}
    write_atomically(folder / CURRENT, (json.dumps(found, indent=1) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, path)
