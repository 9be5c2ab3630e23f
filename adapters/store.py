"""The live catalogue and the adapters' files, in one place that every replica reads.

    store = open_store(state="/srv/clinic", seed_dir=Path("adapters"), cache=Path("/var/cache/x"))
    catalog = store.read()
    store.change(lambda catalog: changes.roll_back(catalog, "cardiology"))

Reading never writes: until the first change the read-only seed is the catalogue. A change reads,
edits and swaps, and begins again when another writer was first, so none is lost.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.base_models import sha256_of
from adapters.catalog import Catalog, load_catalog
from adapters.live_catalog import (
    SEED_PATH,
    AdapterVersion,
    LiveCatalog,
    dump,
    from_seed,
    parse,
    reseed,
)
from adapters.storage.local import (
    BUNDLE_FILES,
    WEIGHTS,
    CatalogStorage,
    LocalStorage,
    PreconditionFailed,
    StorageError,
)
from adapters.storage.object_store import ObjectStorage
from adapters.validation import CONFIG_FILE, WEIGHTS_FILE

logger = logging.getLogger(__name__)

MAX_TRIES = 30
# An add puts its files first and lists them later: what is younger may be about to be listed.
KEEP_UNLISTED_S = 3600.0


class TooBusy(StorageError):
    """Other writers were first, again and again."""


class DamagedAdapter(ValueError):
    """An adapter's files are not those that the catalogue lists."""


@dataclass(frozen=True, slots=True)
class _Read:
    stamp: str | None
    catalog: LiveCatalog
    tag: str | None


class AdapterStore:
    """Any thread may use it.

    Args:
        cache: local folder for what an object store holds.
    """

    def __init__(self, files: CatalogStorage, seed: Catalog, cache: Path) -> None:
        self._files = files
        self._seed = seed
        self._cache = cache
        self._seed_live = from_seed(seed, {e.name: _config_of(seed, e.path) for e in seed.adapters})
        self._lock = threading.Lock()
        self._last: _Read | None = None

    @property
    def location(self) -> str:
        return self._files.location

    @property
    def seed(self) -> Catalog:
        """The read-only catalogue: base models and their prompts come from it."""
        return self._seed

    def read(self) -> LiveCatalog:
        """
        Raises:
            StorageError: the state cannot be read.
            LiveCatalogError: what is there is no catalogue.
        """
        return self._read().catalog

    def stamp(self) -> str | None:
        """Changes whenever the catalogue does; cheap enough to ask every second."""
        return self._files.stamp()

    def change(
        self, edit: Callable[[LiveCatalog], LiveCatalog], *, expected_revision: int | None = None
    ) -> LiveCatalog:
        """Swap the catalogue for `edit(catalog)`; returns the new one.

        Raises:
            ChangeRefused: from `edit`; nothing was changed.
            RevisionMoved: it is not at `expected_revision`.
            TooBusy, StorageError, LiveCatalogError
        """
        for attempt in range(MAX_TRIES):
            before = self._read()
            if expected_revision not in (None, before.catalog.revision):
                raise RevisionMoved(expected_revision, before.catalog.revision)
            edited = self._kept(edit(before.catalog))
            after = edited.model_copy(update={"revision": before.catalog.revision + 1})
            try:
                self._files.put_if_match(dump(after), before.tag)
            except PreconditionFailed:
                time.sleep(random.uniform(0, 0.02) * (attempt + 1))
                continue
            return after
        raise TooBusy(f"{self.location}: {MAX_TRIES} other writers were first: try again")

    def put(self, digest: str, folder: Path) -> str | None:
        """Keep an adapter's two files, before they are listed; returns a mark for `undo_put`."""
        return self._files.put_bundle(digest, folder)

    def undo_put(self, digest: str, mark: str | None) -> None:
        """Delete files that `put` kept and that were refused afterwards. They stay if they were
        there before, or if another writer has put the same ones since: he may be listing them.

        Raises:
            StorageError
        """
        if mark is not None:
            self._files.undo_put(digest, mark)

    def folder(self, version: AdapterVersion) -> Path:
        """A local folder with the files of this version, checked against its checksums.

        Raises:
            StorageError: it cannot be had.
            DamagedAdapter: it is not what was listed.
        """
        if version.path.startswith(SEED_PATH):
            found = self._seed.directory / version.path.removeprefix(SEED_PATH)
        else:
            found = self._files.fetch_bundle(version.digest, self._cache)
        wanted = {CONFIG_FILE: version.config_sha256, WEIGHTS_FILE: version.sha256}
        for name, digest in wanted.items():
            file = found / name
            if not file.is_file():
                raise DamagedAdapter(f"{file}: missing")
            if sha256_of(file) != digest:
                raise DamagedAdapter(f"{file}: its sha256 is not the one that is listed")
        return found

    def collect(self) -> list[str]:
        """Delete files that no version lists and that are an hour old; returns their digests."""
        return self._files.collect(self.read().digests, older_than_s=KEEP_UNLISTED_S)

    def _read(self) -> _Read:
        stamp = self._files.stamp()
        with self._lock:
            last = self._last
        if last is not None and last.stamp == stamp:
            return last
        found = self._files.read()
        if found is None:
            fresh = _Read(None, self._seed_live, None)
        else:
            live = parse(found[0], self.location)
            fresh = _Read(stamp, reseed(live, self._seed_live), found[1])
        with self._lock:
            self._last = fresh
        return fresh

    def _kept(self, catalog: LiveCatalog) -> LiveCatalog:
        """With the seed's files in the state, so that a later seed cannot take them away."""
        adapters = []
        for adapter in catalog.adapters:
            versions = [self._kept_version(v) for v in adapter.versions]
            adapters.append(adapter.model_copy(update={"versions": versions}))
        return catalog.model_copy(update={"adapters": adapters})

    def _kept_version(self, version: AdapterVersion) -> AdapterVersion:
        if not version.path.startswith(SEED_PATH):
            return version
        self._files.put_bundle(version.digest, self.folder(version))
        return version.model_copy(update={"path": f"{WEIGHTS}/{version.digest}"})


class RevisionMoved(Exception):
    """Somebody changed the catalogue since the caller looked at it."""

    def __init__(self, expected: int | None, found: int) -> None:
        super().__init__(
            f"the catalogue is at revision {found}, not {expected}: look at it again first"
        )


def open_store(state: str | Path, seed_dir: Path, cache: Path) -> AdapterStore:
    """
    Args:
        state: a folder's absolute path, or a URL of an object store.

    Raises:
        CatalogError, LiveCatalogError: the seed is wrong.
        StorageError: no driver for the URL.
    """
    files: CatalogStorage
    text = str(state)
    if "://" in text and not text.startswith("file://"):
        files = ObjectStorage(text)
    else:
        files = LocalStorage(Path(text.removeprefix("file://")))
    return AdapterStore(files, load_catalog(seed_dir), cache)


def _config_of(seed: Catalog, path: str) -> tuple[str, int]:
    """sha256 of an adapter's configuration, and the bytes of both files. Files that are missing
    count as empty: whoever loads the adapter says so."""
    files = [seed.directory / path / name for name in BUNDLE_FILES]
    config = files[0]
    digest = sha256_of(config) if config.is_file() else "0" * 64
    return digest, sum(file.stat().st_size for file in files if file.is_file())
