"""The catalogue and the adapters' files in an object store: `s3://`, `gs://`, `abfs://` of fsspec.

An object store has no lock and no rename. It has a put that fails when the object is there
already, so each revision of the document is a separate object,

    <url>/catalog/000000000012.yaml

and replacing revision 11 means creating number 12: of two writers one fails, and nothing is lost.
The highest number is the document. Old numbers are deleted a day later at the earliest; a writer
gives up long before that, so that it cannot create a number that was used and deleted.

A file system whose driver does not offer the conditional put is refused for writing.
"""

import inspect
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from adapters.storage.atomic import unfinished
from adapters.storage.protocol import WEIGHTS, PreconditionFailed, StorageError
from adapters.validation import BUNDLE_FILES

# Stores whose drivers turn `mode="create"` into a conditional put.
CONDITIONAL = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})
NUM_KEPT = 50
KEPT_S = 86_400.0
PATIENCE_S = 600.0  # from reading to writing; far below KEPT_S
_REVISION = re.compile(r"(\d{12})\.yaml")


class ObjectStorage:
    """CatalogStorage without locks or renames.

    Args:
        url: such as s3://bucket/folder; without credentials, which the driver finds.
        clock: seconds since 1970.

    Raises:
        StorageError: no driver for this kind of URL is installed.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        import fsspec

        self._url = url.rstrip("/")
        self._clock = clock
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise StorageError(
                f"{self._url}: {error}: install the driver (s3fs, gcsfs or adlfs) on every node"
            ) from None
        self._read_at: dict[str, float] = {}

    @property
    def location(self) -> str:
        return self._url

    def why_not_writable(self) -> str | None:
        """Return what keeps several writers from being safe here; None if nothing does."""
        names = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        put = getattr(self._fs, "_pipe_file", self._fs.pipe_file)
        if CONDITIONAL & set(names) and "mode" in inspect.signature(put).parameters:
            return None
        return (
            f"{self._url}: the driver of {names[0]}:// offers no conditional put, so two writers "
            "could lose an update: use a folder that every node sees, or s3://, gs:// or abfs://"
        )

    def read(self) -> tuple[bytes, str] | None:
        for _ in range(3):
            newest = self._newest()
            if newest is None:
                return None
            try:
                content: bytes = self._fs.cat_file(self._document(newest))
            except FileNotFoundError:  # a newer one came, and this one was deleted
                continue
            except Exception as error:
                raise self._unreadable(error) from None
            self._read_at = {str(newest): self._clock()}
            return content, str(newest)
        raise StorageError(f"{self._url}: the document changed with every read: try again")

    def weak_etag(self) -> str | None:
        newest = self._newest()
        return None if newest is None else str(newest)

    def put_if_match(self, content: bytes, etag: str | None) -> None:
        obstacle = self.why_not_writable()
        if obstacle:
            raise StorageError(obstacle)
        number = 1 if etag is None else int(etag) + 1
        started = self._read_at.get(etag or "", self._clock())
        if self._clock() - started > PATIENCE_S:
            raise PreconditionFailed
        newest = self._newest()
        if (None if newest is None else str(newest)) != etag:
            raise PreconditionFailed
        try:
            self._fs.pipe_file(self._document(number), content, mode="create")
        except FileExistsError:
            raise PreconditionFailed from None
        except Exception as error:
            if _is_precondition(error):
                raise PreconditionFailed from None
            raise StorageError(f"{self._url}: cannot be written ({_named(error)})") from None
        self._delete_old_revisions(number)

    def put_bundle(self, digest: str, folder: Path) -> str | None:
        obstacle = self.why_not_writable()
        if obstacle:
            raise StorageError(obstacle)
        try:
            # The weights come last: a reader looks for them first.
            for name in BUNDLE_FILES:
                content = (folder / name).read_bytes()
                self._fs.pipe_file(f"{self._root}/{WEIGHTS}/{digest}/{name}", content)
        except Exception as error:
            raise StorageError(f"{self._url}: cannot be written ({_named(error)})") from None
        return None  # without a lock nobody knows whether another writer puts it too

    def undo_put(self, digest: str, token: str) -> None:
        """Do nothing: `collect` deletes the bundle when it is a day old."""

    def fetch_bundle(self, digest: str, cache: Path) -> Path:
        target = cache / digest
        if target.is_dir():
            return target
        fresh = unfinished(cache)
        fresh.mkdir(parents=True)
        try:
            for name in reversed(BUNDLE_FILES):
                content = self._fs.cat_file(f"{self._root}/{WEIGHTS}/{digest}/{name}")
                (fresh / name).write_bytes(content)
            try:
                fresh.rename(target)
            except OSError:  # another thread was first
                if not target.is_dir():
                    raise
        except Exception as error:
            raise self._unreadable(error) from None
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return target

    def collect(self, keep: frozenset[str], *, older_than_s: float) -> list[str]:
        """Delete what is a day old at least: no lock keeps it from being put again now."""
        limit = self._clock() - max(older_than_s, KEPT_S)
        gone = []
        for path in self._list(f"{self._root}/{WEIGHTS}"):
            digest = path.rsplit("/", 1)[-1]
            files = self._list(path)
            if digest not in keep and files and all(self._age_of(f) < limit for f in files):
                self._fs.rm(path, recursive=True)
                gone.append(digest)
        return gone

    def _newest(self) -> int | None:
        numbers = [int(match[1]) for match in map(_matched, self._list(self._folder)) if match]
        return max(numbers, default=None)

    def _delete_old_revisions(self, newest: int) -> None:
        for path in self._list(self._folder):
            match = _matched(path)
            is_old = match is not None and int(match[1]) <= newest - NUM_KEPT
            if is_old and self._age_of(path) < self._clock() - KEPT_S:
                self._fs.rm_file(path)

    def _list(self, folder: str) -> list[str]:
        try:
            return [str(found) for found in self._fs.ls(folder, detail=False, refresh=True)]
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unreadable(error) from None

    def _age_of(self, path: str) -> float:
        return float(self._fs.modified(path).timestamp())

    @property
    def _folder(self) -> str:
        return f"{self._root}/catalog"

    def _document(self, number: int) -> str:
        return f"{self._folder}/{number:012d}.yaml"

    def _unreadable(self, error: Exception) -> StorageError:
        return StorageError(f"{self._url}: cannot be read ({_named(error)})")


def _matched(path: str) -> re.Match[str] | None:
    return _REVISION.fullmatch(path.rsplit("/", 1)[-1])


def _is_precondition(error: Exception) -> bool:
    """Recognise how drivers say that the object is there already."""
    text = str(error)
    return "PreconditionFailed" in text or "412" in text or "ConditionalRequestConflict" in text


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
