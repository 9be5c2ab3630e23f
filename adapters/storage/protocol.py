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
        """Return the document and its etag; None if there is no document yet.

        Raises:
            StorageError: it cannot be read.
        """

    def weak_etag(self) -> str | None:
        """Return what changes whenever the document does; cheap. None if there is none yet."""

    def put_if_match(self, content: bytes, etag: str | None) -> None:
        """Replace the document that has this etag: whole, or not at all.

        Args:
            etag: None if there was no document yet.

        Raises:
            PreconditionFailed: another writer replaced it first.
            StorageError: it cannot be written.
        """

    def put_bundle(self, digest: str, folder: Path) -> str | None:
        """Keep an adapter's two files under `digest`; a second time changes nothing.

        Returns:
            A token for `undo_put`; None if the bundle was there already, or cannot be deleted.

        Raises:
            StorageError: it cannot be written.
        """

    def undo_put(self, digest: str, token: str) -> None:
        """Delete what `put_bundle` made, unless another writer has put the same bundle since."""

    def spare(self, digest: str) -> None:
        """Make a bundle that is about to leave the catalogue as young as a new one, for `collect`:
        a replica that starts, or a question on its way, may still ask for it.

        Raises:
            OSError: it is not there, or cannot be changed.
        """

    def fetch_bundle(self, digest: str, cache: Path) -> Path:
        """Return a local folder that holds the bundle.

        Raises:
            StorageError: it is not there, or cannot be read.
        """

    def collect(self, keep: frozenset[str], *, older_than_s: float) -> list[str]:
        """Delete bundles that are not in `keep`, and unfinished ones; return their names."""
