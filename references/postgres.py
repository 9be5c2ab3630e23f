"""The shelf on a PostgreSQL server with the extension pgvector, for several machines.

The tables are those of a shelf's file (store.py) in a schema of their own; words are a tsvector of
stems with the weights of title, synonyms and text, vectors have HNSW indexes. A change is one
transaction under an advisory lock, and a search reads one snapshot: it sees a change as a whole,
and at its next question.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from references.change import Change, TakenId, Unneeded
from references.embedding import Floats, Vectoriser
from references.passage import Passage, ReferencesError
from references.vectors import Nearness
from references.version import COLUMNS, FORMAT, SOURCES, Source, Version, passage_of, sorted_sources

SCHEMA = "polyclinic_references"
CONNECT_TIMEOUT_S = 5
SEARCH_TIMEOUT_S = 5
LOCK_TIMEOUT_S = 600
_BUILD = "python -m references --shelf URL build"
_LOCK = 7_356_608_017  # any number that nobody else's advisory lock has
_STORED = f"{COLUMNS}, name_stems, text_stems, checksum"
_TABLES = f"""
create schema if not exists {SCHEMA};
create table if not exists meta (key text primary key, value text not null);
create table if not exists passages (number bigint generated always as identity primary key,
  {", ".join(f"{name} text" for name in _STORED.split(", ") if name != "prominence")},
  prominence float8 not null, words tsvector not null, unique (id));
create table if not exists names (key text,
  number bigint references passages on delete cascade, primary key (key, number));
create table if not exists stems (stem text primary key, count bigint not null);
create table if not exists cognates (skeleton text, word text, primary key (skeleton, word));
create table if not exists arrays (name text primary key, data bytea not null);
"""
_VECTORS = """
create table if not exists vectors (number bigint references passages on delete cascade,
  is_text boolean not null, data vector({dimensions}) not null);
"""
_INDEXES = """
create index if not exists passages_words on passages using gin (words);
create index if not exists passages_source on passages (source);
create index if not exists names_number on names (number);
"""
_VECTOR_INDEXES = """
create index if not exists vectors_number on vectors (number);
create index if not exists vectors_names on vectors using hnsw (data vector_cosine_ops)
  where not is_text;
create index if not exists vectors_texts on vectors using hnsw (data vector_cosine_ops)
  where is_text;
"""
_EMPTY = ("vectors", "names", "passages", "stems", "cognates", "arrays", "meta")
_RANK = "%s * ts_rank('{0.125, 0.125, 0.625, 1}', words, %s::tsquery)"
_NEAREST = """
with near as (
  (select number from vectors where not is_text order by data <=> %(v)s::vector limit %(limit)s)
  union (select number from vectors where is_text order by data <=> %(v)s::vector limit %(limit)s)
  union (select unnest(%(among)s::bigint[])))
select number, max(1 - nullif(data <=> %(v)s::vector, 'NaN')) filter (where not is_text),
  max(1 - nullif(data <=> %(v)s::vector, 'NaN')) filter (where is_text)
from vectors where number in (select number from near) group by number
"""


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
                raise _NoShelf(
                    f"there is no shelf at {self.place}: {_BUILD}",
                    public=f"the server has no shelf: {_BUILD}",
                )
            if meta.get("format") != str(FORMAT):
                raise ReferencesError(
                    f"the shelf at {self.place} has format {meta.get('format')}, and this version "
                    f"reads {FORMAT}: build it again"
                )
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
            if meta and not fresh and meta["vectors"] != (vectorise.name if vectorise else ""):
                raise ReferencesError(
                    f"{self.place} was built with the vectors of {meta['vectors'] or 'nothing'!r}: "
                    "to change it, open it with its vectoriser"
                )
            change = PostgresChange(db, {} if fresh else meta, vectorise, was_there=bool(meta))
            yield change
            change.finish()

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
            db = self._local.db = self._psycopg.connect(
                self._url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S
            )
            db.execute(f"set search_path to {SCHEMA}, public")
        with db.transaction():
            db.execute(f"set local statement_timeout = {round(1000 * timeout_s)}")
            yield db

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


def _meta(db: Any) -> dict[str, str]:
    """Return what is recorded with the shelf. Returns {} where there is none."""
    if db.execute("select to_regclass(%s)", (f"{SCHEMA}.meta",)).fetchone()[0] is None:
        return {}
    return dict(db.execute("select key, value from meta").fetchall())


class PostgresVersion(Version):
    """One version; `db` is the connection, in a transaction that keeps it as it is."""

    db: Any

    def _stored_counts(self, wanted: Sequence[str]) -> Iterable[tuple[str, int]]:
        query = "select stem, count from stems where stem = any(%s)"
        rows: list[tuple[str, int]] = self.db.execute(query, (list(wanted),)).fetchall()
        return rows

    def _rows(self, numbers: Sequence[int]) -> Iterable[Sequence[Any]]:
        query = (
            f"select number, {COLUMNS}, name_stems, text_stems from passages where number = any(%s)"
        )
        rows: list[Sequence[Any]] = self.db.execute(query, (list(numbers),)).fetchall()
        return rows

    def _stored_words(self) -> Iterable[str]:
        return (word for (word,) in self.db.execute("select word from cognates"))

    def cognates(self, skeletons: Sequence[str]) -> list[tuple[str, str]]:
        query = "select skeleton, word from cognates where skeleton = any(%s)"
        rows: list[tuple[str, str]] = self.db.execute(query, (list(skeletons),)).fetchall()
        return rows

    def named(self, keys: Sequence[str], limit: int) -> list[int]:
        query = "select distinct number from names where key = any(%s) limit %s"
        return [number for (number,) in self.db.execute(query, (list(keys), limit))]

    def matches(
        self, wanted: Sequence[str], limit: int, *, names_only: bool = False
    ) -> list[tuple[int, float]]:
        """Return number and score: the stems' inverse frequencies, weighed by where they are."""
        counts, where = self.counts(wanted), ":AB" if names_only else ""
        values: list[Any] = []
        for s in wanted:
            values += [math.log(1 + self.num_passages / (counts[s] + 1)), f"'{s}'{where}"]
        query = (
            f"select number, {' + '.join([_RANK] * len(wanted))} from passages "
            "where words @@ %s::tsquery order by 2 desc, 1 limit %s"
        )
        any_of = " | ".join(f"'{s}'{where}" for s in wanted)
        rows: list[tuple[int, float]] = self.db.execute(query, (*values, any_of, limit)).fetchall()
        return rows

    def nearest(self, vector: Floats, among: Iterable[int], limit: int) -> dict[int, Nearness]:
        values = {"v": _literal(vector), "limit": limit, "among": list(among)}
        self.db.execute(f"set local hnsw.ef_search = {max(100, 2 * limit)}")
        return {
            number: (float(name or 0), float(text or 0))
            for number, name, text in self.db.execute(_NEAREST, values)
        }

    def by_id(self, ids: Sequence[str]) -> dict[str, Passage]:
        query = f"select {COLUMNS} from passages where id = any(%s)"
        return {row[0]: passage_of(row) for row in self.db.execute(query, (list(ids),))}

    def passages(self) -> Iterator[tuple[Passage, str]]:
        with self.db.cursor("passages") as cursor:  # kept on the server, read in parts
            cursor.execute(f"select {COLUMNS}, checksum from passages order by number")
            for row in cursor:
                yield passage_of(row[:-1]), row[-1]

    def array(self, name: str) -> bytes | None:
        row = self.db.execute("select data from arrays where name = %s", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def sources(self) -> list[Source]:
        return sorted_sources(self.db.execute(SOURCES))


class PostgresChange(Change):
    """A change, inside a transaction."""

    def __init__(
        self, db: Any, meta: dict[str, str], vectorise: Vectoriser | None, *, was_there: bool
    ) -> None:
        super().__init__(meta, vectorise)
        self.db = db
        self._names: list[tuple[str, int]] = []
        self._cognates: list[tuple[str, str]] = []
        db.execute(_TABLES)
        if vectorise is not None:
            db.execute("create extension if not exists vector schema public")
            size = vectorise(["size"]).shape[1]
            if was_there and not meta:  # the vectors of another vectoriser may have another size
                db.execute("drop table if exists vectors")
            db.execute(_VECTORS.format(dimensions=size))
        if was_there and not meta:
            for table in _EMPTY:
                if db.execute("select to_regclass(%s)", (f"{SCHEMA}.{table}",)).fetchone()[0]:
                    db.execute(f"delete from {table}")

    def _insert(self, row: Sequence[Any], columns: tuple[str, str, str]) -> int:
        marks = ", ".join(["%s"] * len(row))
        found = self.db.execute(
            f"insert into passages ({_STORED}, words) values ({marks}, %s::tsvector) "
            "on conflict (id) do nothing returning number",
            (*row, _tsvector(columns)),
        ).fetchone()
        if found is None:
            raise TakenId
        return int(found[0])

    def _insert_names(self, pairs: Sequence[tuple[str, int]]) -> None:
        self._names += pairs

    def _insert_cognates(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._cognates += pairs

    def _add_waiting(self) -> None:
        """Insert what was kept back, since a round trip for each passage would cost more."""
        for into, rows in (("names (key, number)", self._names), ("cognates", self._cognates)):
            with self.db.cursor() as cursor:
                cursor.executemany(
                    f"insert into {into} values (%s, %s) on conflict do nothing", rows
                )
            rows.clear()

    def _insert_vectors(
        self, numbers: Sequence[int], lengths: Sequence[int], vectors: Floats
    ) -> None:
        ends = np.cumsum(lengths)
        with (
            self.db.cursor() as cursor,
            cursor.copy("copy vectors (number, is_text, data) from stdin") as copy,
        ):
            for number, length, end in zip(numbers, lengths, ends.tolist(), strict=True):
                for at in range(end - length, end):
                    copy.write_row((number, at == end - 1, _literal(vectors[at])))

    def _row(self, id_: str) -> tuple[int, Sequence[Any]] | None:
        query = f"select number, {_STORED} from passages where id = %s"
        row = self.db.execute(query, (id_,)).fetchone()
        return None if row is None else (row[0], row[1:])

    def _delete(self, number: int, passage: Passage, columns: tuple[str, str, str]) -> None:
        self._add_waiting()
        self.db.execute("delete from passages where number = %s", (number,))

    def ids_of(self, source: str) -> list[str]:
        query = "select id from passages where source = %s"
        return [id_ for (id_,) in self.db.execute(query, (source,))]

    def put_array(self, name: str, data: bytes) -> None:
        query = "insert into arrays values (%s, %s) on conflict (name) do update set data = %s"
        self.db.execute(query, (name, data, data))

    def _finish(self, counts: Iterable[tuple[str, int]]) -> None:
        self._add_waiting()
        with self.db.cursor() as cursor:
            cursor.executemany(
                "insert into stems values (%s, %s) "
                "on conflict (stem) do update set count = stems.count + excluded.count",
                list(counts),
            )
            cursor.execute("delete from stems where count <= 0")
            cursor.executemany(
                "insert into meta values (%s, %s) "
                "on conflict (key) do update set value = excluded.value",
                list(self.meta.items()),
            )
            cursor.execute(_INDEXES)
            if self._vectorise is not None:
                cursor.execute(_VECTOR_INDEXES)


def _tsvector(columns: tuple[str, str, str]) -> str:
    """Return stems as a tsvector: at position 1 those of the title (A), at 2 of the synonyms (B),
    at 3 of the text (D)."""
    places: dict[str, list[str]] = {}
    for words, place in zip(columns, ("1A", "2B", "3D"), strict=True):
        for s in dict.fromkeys(words.split()):
            places.setdefault(s, []).append(place)
    return " ".join(f"'{s}':{','.join(at)}" for s, at in places.items())


def _literal(vector: Floats) -> str:
    return "[" + ",".join(f"{value:.5g}" for value in vector.tolist()) + "]"
