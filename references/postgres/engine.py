"""The shelf on a PostgreSQL server with the extension pgvector, for several machines.

The tables are those of a shelf's file (store.py) in a schema of their own; words are a tsvector of
stems with the weights of title, synonyms and text, vectors have HNSW indexes. A change is one
transaction under an advisory lock, and a search reads one snapshot: it sees a change as a whole,
and at its next question. Tables of another shape are made in a second schema, which then takes the
first one's name: who reads waits for that alone.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from references.change import Unneeded
from references.embedding import Vectoriser
from references.passage import Passage, ReferencesError
from references.postgres.change import SCHEMA, PostgresChange
from references.postgres.version import PostgresVersion
from references.version import FORMAT, passages_in

CONNECT_TIMEOUT_S = 5
SEARCH_TIMEOUT_S = 5
PAUSE_S = 10  # after a server has hung
LOCK_TIMEOUT_S = 600
_BUILD = "python -m references --shelf URL build"
_NEXT = f"{SCHEMA}_next"
_LOCK = 7_356_608_017  # any number that nobody else's advisory lock has


class PostgresEngine:
    """A shelf on a server. Each thread has a connection; a lost one is made anew.

    Args:
        url: postgresql://user@host:port/database; a password may also stand in PGPASSWORD or in
            ~/.pgpass, as libpq reads them.

    Raises:
        ReferencesError: psycopg is not installed, or the address is not one.
    """

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise ReferencesError(
                "a shelf on PostgreSQL needs psycopg: pip install 'polyclinic[postgres]'"
            ) from None
        try:
            parts = urlsplit(url)
            host = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
            psycopg.conninfo.conninfo_to_dict(url)
        except (ValueError, psycopg.Error):
            parts, host = urlsplit("none:"), ""
        if parts.scheme not in ("postgresql", "postgres"):
            raise ReferencesError(
                "the shelf's address is not one of PostgreSQL: postgresql://user@host:5432/database"
            )
        self.place = f"{parts.scheme}://{host}{parts.path}"  # without user and password
        self._url = url
        self._psycopg = psycopg
        self._local = threading.local()
        self._not_before = 0.0  # on the monotonic clock: no attempt to connect

    def is_there(self) -> bool:
        try:
            with self.reading():
                return True
        except _NoShelf:
            return False

    @contextmanager
    def reading(self) -> Iterator["PostgresVersion"]:
        """Give the newest version, as one snapshot.

        Raises:
            ReferencesError: the server does not answer, or has no shelf.
        """
        inside: PostgresVersion | None = getattr(self._local, "inside", None)
        if inside is not None:  # this thread reads already, and goes on with the same snapshot
            yield inside
            return
        with self._told("read"), self._transaction(SEARCH_TIMEOUT_S) as db:
            db.execute("set transaction isolation level repeatable read, read only")
            meta = _meta(db)
            if not meta:
                raise self._no_shelf()
            if meta.get("format") != str(FORMAT):
                raise self._of_another_format(meta)
            known: PostgresVersion | None = getattr(self._local, "version", None)
            if known is None or known.meta != meta:
                known = self._local.version = PostgresVersion(meta)
            known.db = db
            self._local.inside = known
            try:
                yield known
            finally:
                self._local.inside = None

    @contextmanager
    def changed(
        self,
        vectorise: Vectoriser | None,
        *,
        fresh: bool = False,
        create: bool = False,
        unless: Callable[[], bool] = lambda: False,
    ) -> Iterator["PostgresChange"]:
        """Change the shelf in one transaction; others that change it wait.

        Raises:
            Unneeded: `unless` said yes.
            ReferencesError: it cannot be made; the shelf is as it was.
        """
        with self._told("changed"), self._transaction(LOCK_TIMEOUT_S) as db:
            db.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
            if unless():
                raise Unneeded
            meta = _meta(db)
            if not (meta or fresh or create):
                raise self._no_shelf()
            if meta and not fresh and meta["vectors"] != _name_of(vectorise):
                raise ReferencesError(
                    f"{self.place} was built with the vectors of {meta['vectors'] or 'nothing'!r}: "
                    "to change it, open it with its vectoriser"
                )
            outdated = bool(meta) and meta.get("format") != str(FORMAT)
            if outdated and not fresh:
                raise self._of_another_format(meta)
            # The columns or the vectors have another shape: their tables are made beside the old.
            is_beside = outdated or (bool(meta) and meta["vectors"] != _name_of(vectorise))
            if is_beside:
                db.execute(f"drop schema if exists {_NEXT} cascade; create schema {_NEXT}")
                db.execute(f"set local search_path to {_NEXT}, public")
                meta = {}
            change = PostgresChange(db, {} if fresh else meta, vectorise, was_there=bool(meta))
            yield change
            change.finish()
            if is_beside:
                db.execute(f"drop schema {SCHEMA} cascade; alter schema {_NEXT} rename to {SCHEMA}")

    def stored(self) -> Iterator[Passage]:
        with self._told("read"), self._transaction(LOCK_TIMEOUT_S) as db:
            if _meta(db):
                yield from passages_in(db.execute("select * from passages order by number"))

    def _of_another_format(self, meta: Mapping[str, str]) -> ReferencesError:
        return ReferencesError(
            f"the shelf at {self.place} has format {meta.get('format')}, and this version reads "
            f"{FORMAT}: build it again"
        )

    def _no_shelf(self) -> "_NoShelf":
        return _NoShelf(
            f"there is no shelf at {self.place}: {_BUILD}",
            public=f"the server has no shelf: {_BUILD}",
        )

    def problems(self) -> list[str]:
        return []  # the server checks its own pages

    @contextmanager
    def _transaction(self, timeout_s: float) -> Iterator[Any]:
        """Give this thread's connection inside a transaction."""
        db = getattr(self._local, "db", None)
        if db is not None and db.closed:
            db = None
        if db is not None:
            try:  # the server may have ended since the last question
                db.execute("select 1")
            except self._psycopg.Error:
                with suppress(self._psycopg.Error):
                    db.close()
                db = None
        if db is None:
            db = self._local.db = self._connected()
        with db.transaction():
            db.execute(f"set local statement_timeout = {round(1000 * timeout_s)}")
            yield db

    def _connected(self) -> Any:
        """Return a new connection; a server that hung a moment ago is not waited for again."""
        started = time.monotonic()
        if started < self._not_before:
            raise ReferencesError(
                f"the shelf's server {self.place} does not answer",
                public="the shelf's server does not answer",
            )
        try:
            db = self._psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT_S,
                tcp_user_timeout=1000 * SEARCH_TIMEOUT_S,
            )
        except self._psycopg.Error:
            if time.monotonic() - started > 1:  # one that refuses costs nobody time
                self._not_before = time.monotonic() + PAUSE_S
            raise
        db.execute(f"set search_path to {SCHEMA}, public")
        return db

    @contextmanager
    def _told(self, done: str) -> Iterator[None]:
        """Turn the driver's errors into one that names the server and the mend."""
        try:
            yield
        except self._psycopg.Error as error:
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            why = "is it up, is its disk full, and has it the extension pgvector?"
            raise ReferencesError(
                f"the shelf at {self.place} could not be {done} ({reason}): {why}",
                public=f"the shelf's server could not be {done}: {why}",
            ) from None


class _NoShelf(ReferencesError):
    """The server answers, and has no shelf."""


def _name_of(vectorise: Vectoriser | None) -> str:
    return vectorise.name if vectorise else ""


def _meta(db: Any) -> dict[str, str]:
    """Return what is recorded with the shelf. Returns {} where there is none."""
    if db.execute("select to_regclass(%s)", (f"{SCHEMA}.meta",)).fetchone()[0] is None:
        return {}
    return dict(db.execute("select key, value from meta").fetchall())
