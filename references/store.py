"""The shelf's file: a SQLite database with a full-text index that is replaced as a whole.

A change is made on a copy beside the file, checked, and renamed over it, under a lock: readers see
the shelf before or after a change, never between, and a builder that fails leaves the file alone.
The index holds stems (words.py), so that SQLite needs no stemmer and questions and passages are
cut alike.
"""

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from references.change import Change, TakenId, Unneeded
from references.embedding import Floats, PassageVectors, Vectoriser, packed
from references.passage import Passage, ReferencesError
from references.reader import Reader, damaged
from references.version import COLUMNS, RANKED_BY, STORED, Version, passages_in
from references.words import name_key

LOCK_TIMEOUT_S = 600
# What is ranked by stands before the text, which may be long: SQLite reads a row from its start.
_COLUMNS = RANKED_BY.replace("id,", "id text unique,", 1) + "".join(
    f", {name}" for name in COLUMNS.split(", ") if name not in (*RANKED_BY.split(", "), "text")
)
_SCHEMA = f"""
create table meta (key text primary key, value text not null) without rowid;
create table passages (number integer primary key, {_COLUMNS}, checksum text not null,
  text text not null);
create virtual table words using fts5 (title, synonyms, body, content='', tokenize='unicode61');
create table names (key text, number integer, primary key (key, number)) without rowid;
create table stems (stem text primary key, count integer not null) without rowid;
create table cognates (skeleton text, word text, primary key (skeleton, word)) without rowid;
create table vectors (number integer primary key, num_vectors integer, data blob not null);
create table arrays (name text primary key, data blob not null) without rowid;
"""


class Writer(Change):
    """A change of a shelf's file, made on a copy."""

    def __init__(self, path: Path, vectorise: Vectoriser | None = None) -> None:
        fresh = not path.exists()
        self.db = sqlite3.connect(path, isolation_level=None)
        # Nobody reads this file yet, and a crash discards it: durability comes with the rename.
        self.db.executescript("pragma journal_mode=memory; pragma synchronous=off;")
        if fresh:
            self.db.executescript(_SCHEMA)
        self.db.execute("begin")
        super().__init__(dict(self.db.execute("select key, value from meta")), vectorise)

    def _insert(self, row: Sequence[Any], columns: tuple[str, str, str]) -> int:
        marks = ", ".join("?" * len(row))
        query = f"insert into passages ({STORED}) values ({marks})"
        try:
            number = int(self.db.execute(query, row).lastrowid or 0)
        except sqlite3.IntegrityError:
            raise TakenId from None
        self.db.execute(
            "insert into words (rowid, title, synonyms, body) values (?, ?, ?, ?)",
            (number, *columns),
        )
        return number

    def _insert_names(self, pairs: Sequence[tuple[str, int]]) -> None:
        self.db.executemany("insert into names values (?, ?)", pairs)

    def _insert_cognates(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.db.executemany("insert or ignore into cognates values (?, ?)", pairs)

    def _insert_vectors(
        self, numbers: Sequence[int], lengths: Sequence[int], vectors: Floats
    ) -> None:
        rows = zip(numbers, lengths, packed(vectors, lengths), strict=True)
        self.db.executemany("insert into vectors values (?, ?, ?)", rows)

    def _row(self, id_: str) -> tuple[int, Sequence[Any]] | None:
        query = f"select number, {STORED} from passages where id = ?"
        row = self.db.execute(query, (id_,)).fetchone()
        return None if row is None else (row[0], row[1:])

    def _delete(self, number: int, passage: Passage, columns: tuple[str, str, str]) -> None:
        self.db.execute(
            "insert into words (words, rowid, title, synonyms, body) values ('delete', ?, ?, ?, ?)",
            (number, *columns),
        )
        for table in ("passages", "vectors"):
            self.db.execute(f"delete from {table} where number = ?", (number,))
        for name, language in passage.names():
            pair = (name_key(name, language), number)
            self.db.execute("delete from names where key = ? and number = ?", pair)

    def ids_of(self, source: str) -> list[str]:
        query = "select id from passages where source = ?"
        return [id_ for (id_,) in self.db.execute(query, (source,))]

    def put_array(self, name: str, data: bytes) -> None:
        self.db.execute("insert or replace into arrays values (?, ?)", (name, data))

    def _finish(self, counts: Iterable[tuple[str, int]]) -> None:
        self.db.executemany(
            "insert into stems values (?, ?) on conflict do update set count = count + ?",
            ((word, count, count) for word, count in counts),
        )
        self.db.execute("delete from stems where count <= 0")
        self.db.executemany("insert or replace into meta values (?, ?)", self.meta.items())
        self.db.execute("insert into words (words) values ('optimize')")
        self.db.execute("commit")

    def close(self) -> None:
        self.db.close()


class Engine(Protocol):
    """Where a shelf lies. Safe to use from several threads and processes."""

    @property
    def place(self) -> str:
        """Return the file, or the server without its password, for messages."""

    def is_there(self) -> bool:
        """Return whether there is a shelf to change. Raises ReferencesError: nobody answers."""

    def reading(self) -> AbstractContextManager[Version]:
        """Give the newest version, unchanged as long as the block runs.

        Raises:
            ReferencesError: there is no shelf, or it cannot be read.
        """

    def changed(
        self,
        vectorise: Vectoriser | None,
        *,
        fresh: bool = ...,
        create: bool = ...,
        unless: Callable[[], bool] = ...,
    ) -> AbstractContextManager[Change]:
        """Give a change, which becomes final as one step when the block ends without an error.

        Args:
            fresh: begin with an empty shelf.
            create: begin with an empty one where there is none.
            unless: asked when nobody else can change the shelf, whether it is still needed.

        Raises:
            Unneeded: `unless` said yes.
            ReferencesError: it cannot be made; the shelf is as it was.
        """

    def stored(self) -> Iterator[Passage]:
        """Yield the passages that are there, in a shelf of an older format too.

        Raises:
            ReferencesError: they cannot be read.
        """

    def problems(self) -> list[str]:
        """Return what is wrong with the storage itself."""


def engine_of(place: Path | str) -> Engine:
    """Return the engine of a file, or of a server (postgresql://...).

    Raises:
        ReferencesError: it is a server, and psycopg is not installed.
    """
    if isinstance(place, str) and "://" in place:
        from references.postgres.engine import PostgresEngine

        return PostgresEngine(place)
    return FileEngine(Path(place))


class FileEngine:
    """A shelf in a file. A search looks whether the file was replaced, and reads the newest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._vectors: dict[str, PassageVectors] = {}

    @property
    def place(self) -> str:
        return str(self.path)

    def is_there(self) -> bool:
        return self.path.exists()

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """Give this thread's reader of the file that is in place now.

        Raises:
            ReferencesError: there is no shelf, or its file is damaged.
        """
        try:
            state = os.stat(self.path)
            now = (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size)
        except OSError:
            now = None
        known, reader = getattr(self._local, "open", (None, None))
        if reader is None or now is None or known != now:
            reader = Reader(self.path, self._vectors)
            self._local.open = (now, reader)
        try:
            yield reader
        except sqlite3.Error as error:
            raise damaged(self.path, error) from None

    def changed(
        self,
        vectorise: Vectoriser | None,
        *,
        fresh: bool = False,
        create: bool = False,
        unless: Callable[[], bool] = lambda: False,
    ) -> AbstractContextManager[Writer]:
        return changed(self.path, vectorise, fresh=fresh, create=create, unless=unless)

    def stored(self) -> Iterator[Passage]:
        if not self.path.exists():
            return
        try:
            address = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
            with closing(sqlite3.connect(address, uri=True)) as db:
                yield from passages_in(db.execute("select * from passages order by number"))
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise damaged(self.path, error) from None

    def problems(self) -> list[str]:
        """Return what SQLite's own check finds wrong with the file's pages."""
        with self.reading() as reader:
            rows = [row[0] for row in reader.db.execute("pragma quick_check")]
        return [f"{self.path}: {row}: restore or build it again" for row in rows if row != "ok"]


@contextmanager
def changed(
    path: Path,
    vectorise: Vectoriser | None = None,
    *,
    fresh: bool = False,
    create: bool = False,
    unless: Callable[[], bool] = lambda: False,
) -> Iterator[Writer]:
    """Change a shelf as one step: the block writes to a copy, which then takes the file's place.

    Args:
        path: the shelf's file.
        fresh: begin with an empty shelf instead of a copy.
        create: begin with an empty one where there is none.
        unless: asked under the lock, whether the change is no longer needed.

    Raises:
        Unneeded: `unless` said yes.
        ReferencesError: another process has held the lock for ten minutes, the disk is full or
            the folder cannot be written. The file is as it was before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT_S):
            for left in path.parent.glob(f"{path.name}.making-*"):  # of killed processes
                left.unlink()
            if unless():
                raise Unneeded
            work = path.with_name(f"{path.name}.making-{os.getpid()}")
            try:
                if not fresh and (path.exists() or not create):
                    _check_vectoriser(path, vectorise)
                    shutil.copyfile(path, work)
                yield from _written(work, vectorise)
                os.replace(work, path)
                _sync(path.parent)
            finally:
                work.unlink(missing_ok=True)
    except Timeout:
        raise ReferencesError(
            f"another process has been changing {path} for {LOCK_TIMEOUT_S} s: wait, or end it"
        ) from None
    except (OSError, sqlite3.OperationalError, sqlite3.DatabaseError) as error:
        raise ReferencesError(
            f"{path} could not be written ({error}); the shelf before stays as it is: is the disk "
            "full, or the folder of another user? Free space, or choose another --shelf"
        ) from error


def _check_vectoriser(path: Path, vectorise: Vectoriser | None) -> None:
    """Refuse what is not a shelf of this format, and a change that would mix vectors."""
    reader = Reader(path)
    reader.db.close()
    if reader.meta["vectors"] != (vectorise.name if vectorise else ""):
        raise ReferencesError(
            f"{path} was built with the vectors of {reader.meta['vectors'] or 'nothing'!r}: to "
            "change it, open it with its vectoriser"
        )


def _written(work: Path, vectorise: Vectoriser | None) -> Iterator[Writer]:
    writer = Writer(work, vectorise)
    try:
        yield writer
        writer.finish()
    finally:
        writer.close()
    _sync(work)


def _sync(path: Path) -> None:
    """Have the system write a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
