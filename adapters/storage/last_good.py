"""What this node served last of a state, for the time in which the state cannot be read.

A copy of the newest catalogue, and the files of the adapters that were loaded here. Nothing is ever
written back from it: it lets a new replica start while the state is away, no more.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from adapters.storage.atomic import UNFINISHED, unfinished, write_atomically
from adapters.storage.protocol import CATALOG, WEIGHTS
from adapters.validation import BUNDLE_FILES

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "POLYCLINIC_LAST_GOOD_DIR"


def last_good_folder(location: str) -> Path:
    """Return where this node keeps its copy of the state at `location`: below
    POLYCLINIC_LAST_GOOD_DIR, or the platform's folder for this user's state."""
    from platformdirs import user_state_path

    given = os.environ.get(FOLDER_VARIABLE)
    root = Path(given).expanduser() if given else user_state_path("polyclinic") / "last_good"
    return root / hashlib.sha256(location.encode()).hexdigest()[:16]


class LastGood:
    """Any thread of any process may use it. A copy that cannot be written is logged, once.

    Args:
        folder: made on the first copy, for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._weights = folder / WEIGHTS
        self._has_failed = False

    def catalog(self) -> bytes | None:
        """Return the newest catalogue that was kept. None if there is none that can be read."""
        try:
            return (self.folder / CATALOG).read_bytes()
        except OSError:
            return None

    def keep_catalog(self, content: bytes, digests: Collection[str]) -> None:
        """Keep a catalogue, and drop the files of adapters that it does not list."""
        with self._tolerated():
            if content != self.catalog():
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomically(self.folder / CATALOG, content)
            for found in self._weights.iterdir() if self._weights.is_dir() else ():
                if found.name not in digests and not found.name.startswith(UNFINISHED):
                    shutil.rmtree(found, ignore_errors=True)

    def bundle(self, digest: str) -> Path | None:
        """Return the folder with an adapter's files. None if they were not kept."""
        found = self._weights / digest
        return found if found.is_dir() else None

    def keep_bundle(self, digest: str, folder: Path) -> None:
        """Keep an adapter's files: linked where that is possible, since they never change."""
        target = self._weights / digest
        if folder == target or _is_like(target, folder):
            return
        with self._tolerated():
            if target.is_dir():  # cut off, by a machine that lost its power
                shutil.rmtree(target)
            self._weights.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = unfinished(self._weights)
            fresh.mkdir(mode=0o700)
            try:
                for name in BUNDLE_FILES:
                    _link_or_copy(folder / name, fresh / name)
                fresh.rename(target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                logger.warning("no copy for the time the state is away: %s", error)
            self._has_failed = True


def _is_like(copy: Path, folder: Path) -> bool:
    """Whether a copy has files of the same lengths."""
    try:
        return all(
            (copy / name).stat().st_size == (folder / name).stat().st_size for name in BUNDLE_FILES
        )
    except OSError:
        return False


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
