"""The catalogue and the adapters' files, in one place that every replica reads.

    store = open_store(state="/srv/clinic", seed_dir=Path("adapters"), cache=Path("/var/cache/x"))
    catalog = store.read()
    store.change(lambda catalog: changes.roll_back(catalog, "cardiology"))

Reading never writes: until the first change the read-only seed is the catalogue. A change reads,
edits and swaps, and starts again when another writer was first, so no change is lost.
"""

import contextlib
import logging
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.bases.models import sha256_of
from adapters.catalog import Catalog, dump, load_catalog, parse
from adapters.seed import reseed
from adapters.storage.last_good import LastGood
from adapters.storage.local import LocalStorage
from adapters.storage.object_store import ObjectStorage
from adapters.storage.protocol import WEIGHTS, CatalogStorage, PreconditionFailed, StorageError
from adapters.validation import CONFIG_FILE, WEIGHTS_FILE, fix_of
from adapters.versions import SEED_PATH, AdapterVersion

logger = logging.getLogger(__name__)

MAX_TRIES = 30
# An add puts its files first and lists them later: younger files may be about to be listed.
KEEP_UNLISTED_S = 3600.0


class TooBusy(StorageError):
    """Other writers were first, again and again."""


class RevisionMoved(Exception):
    """The catalogue changed since the caller read it."""

    def __init__(self, expected: int | None, found: int) -> None:
        super().__init__(
            f"the catalogue is at revision {found}, not {expected}: read it again first"
        )


class DamagedAdapter(ValueError):
    """An adapter's files are not those that the catalogue lists."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    weak_etag: str | None
    catalog: Catalog
    etag: str | None


class AdapterStore:
    """Any thread may use it.

    Args:
        seed_dir: folder of the read-only catalog.yaml and its adapters.
        cache: local folder for what an object store holds.
        last_good: this node's copy of what it served last; None: there is none.

    Raises:
        CatalogError: the seed is not valid.
    """

    def __init__(
        self,
        files: CatalogStorage,
        seed_dir: Path,
        cache: Path,
        last_good: LastGood | None = None,
    ) -> None:
        self._files = files
        self.seed_dir = seed_dir
        self.seed = load_catalog(seed_dir)
        self._cache = cache
        self._copy = last_good
        self._lock = threading.Lock()
        self._last: _Snapshot | None = None

    @property
    def location(self) -> str:
        return self._files.location

    def read(self) -> Catalog:
        """Return the catalogue as it is now.

        Raises:
            StorageError: the state cannot be read.
            CatalogError: what is there is not a catalogue.
        """
        return self._read().catalog

    def read_or_last_good(self) -> Catalog:
        """Return the catalogue as it is now or, where it cannot be read, as this node knew it last.

        For the start of a replica; a change is never based on it.

        Raises:
            StorageError, CatalogError: it cannot be read, and nothing was kept of it.
        """
        try:
            return self.read()
        except (OSError, ValueError) as error:
            kept = self._kept_copy()
            if kept is None:
                raise
            logger.error("catalogue revision %d of this node's copy: %s", kept.revision, error)
            return kept

    def etag(self) -> str | None:
        """Return what changes whenever the catalogue does; cheap enough to ask every second."""
        return self._files.weak_etag()

    def change(
        self, edit: Callable[[Catalog], Catalog], *, expected_revision: int | None = None
    ) -> Catalog:
        """Replace the catalogue with `edit(catalog)`; returns the new one.

        Raises:
            ChangeRefused: from `edit`; nothing was changed.
            RevisionMoved: it is not at `expected_revision`.
            TooBusy, StorageError, CatalogError
        """
        for attempt in range(MAX_TRIES):
            before = self._read()
            if expected_revision not in (None, before.catalog.revision):
                raise RevisionMoved(expected_revision, before.catalog.revision)
            edited = self._kept(edit(before.catalog))
            after = edited.model_copy(update={"revision": before.catalog.revision + 1})
            for digest in before.catalog.digests - after.digests:
                with contextlib.suppress(OSError):  # its files are lost: it may go all the same
                    self._files.spare(digest)
            try:
                self._files.put_if_match(dump(after), before.etag)
            except PreconditionFailed:
                time.sleep(random.uniform(0, 0.02) * (attempt + 1))
                continue
            return after
        raise TooBusy(f"{self.location}: {MAX_TRIES} other writers were first: try again")

    def put(self, digest: str, folder: Path) -> str | None:
        """Keep an adapter's two files, before they are listed; returns a token for `undo_put`."""
        return self._files.put_bundle(digest, folder)

    def undo_put(self, digest: str, token: str | None) -> None:
        """Delete files that `put` kept and that were refused afterwards.

        They stay if they were there before, or if another writer has put the same ones since and
        may be about to list them.

        Raises:
            StorageError
        """
        if token is not None:
            self._files.undo_put(digest, token)

    def folder(self, version: AdapterVersion) -> Path:
        """Return a local folder with the files of this version, checked against its checksums.

        Raises:
            StorageError: they cannot be read.
            DamagedAdapter: they are not what was listed.
        """
        if version.path.startswith(SEED_PATH):
            return _checked(self.seed_dir / version.path.removeprefix(SEED_PATH), version)
        try:
            found = self._fetched(version)
        except (OSError, ValueError):
            kept = self._other_place(version.digest)
            if kept is None:
                raise
            return _checked(kept, version)
        if self._copy:
            self._copy.keep_bundle(version.digest, found)
        return found

    def _fetched(self, version: AdapterVersion) -> Path:
        """Return the state's files; those of the cache that are damaged are fetched again."""
        found = self._files.fetch_bundle(version.digest, self._cache)
        try:
            return _checked(found, version)
        except DamagedAdapter:
            if found.parent != self._cache:
                raise
            shutil.rmtree(found)
        return _checked(self._files.fetch_bundle(version.digest, self._cache), version)

    def collect(self) -> list[str]:
        """Delete files that no version has listed for an hour; return their digests."""
        return self._files.collect(self.read().digests, older_than_s=KEEP_UNLISTED_S)

    def _read(self) -> _Snapshot:
        weak_etag = self._files.weak_etag()
        with self._lock:
            last = self._last
        if last is not None and last.weak_etag == weak_etag:
            return last
        found = self._files.read()
        if found is None:
            self._check_never_changed(last)
            fresh = _Snapshot(None, self.seed, None)
        else:
            content, etag = found
            fresh = _Snapshot(weak_etag, reseed(parse(content, self.location), self.seed), etag)
            if self._copy:
                self._copy.keep_catalog(content, fresh.catalog.digests)
        with self._lock:
            self._last = fresh
        return fresh

    def _check_never_changed(self, last: _Snapshot | None) -> None:
        """Raise StorageError if there was a catalogue where there is none now.

        Taking that for a state that was never changed would put the seed into service again.
        """
        known = last.catalog if last is not None and last.etag is not None else self._kept_copy()
        if known is None:
            return
        again = f"; to begin again from the seed, remove {self._copy.folder}" if self._copy else ""
        raise StorageError(
            f"{self.location}: the catalogue is gone, and revision {known.revision} was served: "
            f"put the state back{again}"
        )

    def _kept_copy(self) -> Catalog | None:
        content = self._copy.catalog() if self._copy else None
        if content is None:
            return None
        try:
            return reseed(parse(content, "this node's copy"), self.seed)
        except ValueError as error:
            logger.error("this node's copy of the catalogue cannot be used: %s", error)
            return None

    def _other_place(self, digest: str) -> Path | None:
        """Return where else this node has an adapter's files: its copy, or the seed."""
        kept = self._copy.bundle(digest) if self._copy else None
        seeded = (v for adapter in self.seed.adapters for v in adapter.versions)
        paths = (v.path.removeprefix(SEED_PATH) for v in seeded if v.digest == digest)
        return kept or next((self.seed_dir / path for path in paths), None)

    def _kept(self, catalog: Catalog) -> Catalog:
        """Copy the seed's files into the state, so that a later seed cannot take them away."""
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


def _checked(folder: Path, version: AdapterVersion) -> Path:
    """Return the folder of a version's files; raises DamagedAdapter."""
    listed = {CONFIG_FILE: version.config_sha256, WEIGHTS_FILE: version.sha256}
    for name, digest in listed.items():
        file = folder / name
        if not file.is_file():
            raise DamagedAdapter(f"{file}: missing; {fix_of(file)}")
        if (sha256 := sha256_of(file)) != digest:
            raise DamagedAdapter(
                f"{file}: its sha256 is not the one that is listed ({sha256}, not {digest}): "
                f"the file is damaged, or the catalogue is not up to date; {fix_of(file)}"
            )
    return folder


def open_store(
    state: str | Path, seed_dir: Path, cache: Path, last_good: LastGood | None = None
) -> AdapterStore:
    """Open the store of a clinic.

    Args:
        state: a folder's absolute path, or a URL of an object store.
        last_good: as for AdapterStore.

    Raises:
        CatalogError: the seed is not valid.
        StorageError: no driver for the URL is installed.
    """
    files: CatalogStorage
    text = str(state)
    if "://" in text and not text.startswith("file://"):
        files = ObjectStorage(text)
    else:
        files = LocalStorage(Path(text.removeprefix("file://")))
    return AdapterStore(files, seed_dir, cache, last_good)
