"""Where the catalogue lies: a document that is compared and swapped, and folders by content."""

from pathlib import Path
from typing import Protocol

CATALOG = "catalog.yaml"
WEIGHTS = "weights"


class StorageError(OSError):
    """The state cannot be read or written; says where and why."""


class PreconditionFailed(Exception):
    """The document is no longer what the writer had read."""


class CatalogStorage(Protocol):
    """Any thread of any process may use it. An etag names a content of the document."""

    @property
    def location(self) -> str: ...

    def read(self) -> tuple[bytes, str] | None:
        """Return the document and its etag, None if there is none yet; raise StorageError."""

    def weak_etag(self) -> str | None:
        """Return what changes whenever the document does; cheap. None if there is none yet."""

    def put_if_match(self, content: bytes, etag: str | None) -> None:
        """Replace the document of this etag (None: the first), or raise PreconditionFailed."""

    def put_bundle(self, digest: str, folder: Path) -> str | None:
        """Keep two files under `digest`; return a token for `undo_put`, None if they were there."""

    def undo_put(self, digest: str, token: str) -> None:
        """Delete what `put_bundle` made, unless another writer has put the same bundle since."""

    def fetch_bundle(self, digest: str, cache: Path) -> Path:
        """Return a local folder that holds the bundle; raise StorageError if it is not there."""

    def collect(self, keep: frozenset[str], *, older_than_s: float) -> list[str]:
        """Delete bundles that are not in `keep`, and unfinished ones; return their names."""
