"""Versions of the artefact in one folder, one of them current: publish, roll back, follow.

    <folder>/current.json            {"version", "previous": [...]}: the newest of `previous` last
    <folder>/versions/<version>/     an artefact each, never changed once written

Serving follows `current.json` (deployments/ingress/followed.py), so a change reaches every
replica that sees the folder. A folder that is an artefact itself has one version, its own.
"""

import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

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
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,99}")


@dataclass(frozen=True, slots=True)
class Current:
    """`previous`: versions that were current before, oldest first."""

    version: str
    previous: tuple[str, ...]


def resolve(folder: Path) -> Path:
    """The artefact that is in force: `folder` itself, or its current version.

    Raises:
        ArtefactError: neither an artefact nor a folder of versions.
    """
    if (folder / MANIFEST).is_file() or not (folder / CURRENT).is_file():
        return folder  # an empty folder is refused by whoever reads it
    return folder / VERSIONS / read_current(folder).version


def stamp(folder: Path) -> str:
    """Changes whenever another artefact is in force; cheap enough to ask every few seconds.

    Raises:
        ArtefactError: there is none, or its manifest cannot be read.
    """
    artefact = resolve(folder)
    return f"{artefact}@{read_manifest(artefact / MANIFEST).get('version')}"


def read_current(folder: Path) -> Current:
    """
    Raises:
        ArtefactError: current.json is missing or damaged.
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
            raise artefact_error(file, f"{version!r} is no version's name")
    return current


def publish(artefact: Path, folder: Path) -> str:
    """Copy an artefact into `folder` as a new version and make it current; returns the version.

    Raises:
        ArtefactError: the artefact is damaged, another one has its version's name, or `folder`
            is an artefact itself.
    """
    if (folder / MANIFEST).is_file():
        raise ArtefactError(
            f"router artefact: {folder}: it is an artefact itself; versions need a folder of their "
            "own: give another one (and set router.artefact to it)"
        )
    loaded = load_artefact(artefact)
    for name in loaded.manifest["files"]:  # those that only scripts read, too
        checked_bytes(artefact, loaded.manifest, name)
    version = loaded.version
    if not _SAFE.fullmatch(version):
        raise artefact_error(artefact / MANIFEST, f"{version!r} is no version's name")
    target = folder / VERSIONS / version
    if target.exists():
        if read_manifest(target / MANIFEST) != read_manifest(artefact / MANIFEST):
            raise artefact_error(target, f"another artefact is already called {version}")
        load_artefact(target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
            fresh = Path(scratch) / version
            shutil.copytree(artefact, fresh)
            fresh.rename(target)
    before = read_current(folder) if (folder / CURRENT).is_file() else None
    if before is None or before.version != version:
        previous = (*before.previous, before.version) if before else ()
        _write_current(folder, Current(version, previous))
    return version


def roll_back(folder: Path) -> str:
    """Make the version before the current one current again; returns it.

    Raises:
        ArtefactError: there is no earlier version, or it is damaged.
    """
    current = read_current(folder)
    if not current.previous:
        raise ArtefactError(
            f"router artefact: {folder / CURRENT}: there is no version before {current.version}"
        )
    earlier = current.previous[-1]
    load_artefact(folder / VERSIONS / earlier)
    _write_current(folder, Current(earlier, current.previous[:-1]))
    return earlier


def _write_current(folder: Path, current: Current) -> None:
    """Readers see the old file or the new one, never a part."""
    text = json.dumps({"version": current.version, "previous": list(current.previous)}, indent=1)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{CURRENT}-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)
    os.replace(name, folder / CURRENT)
