"""The shelf's file: a SQLite database with a full-text index that is replaced as a whole.

A change is made on a copy beside the file, checked, and renamed over it, under a lock: readers see
the shelf before or after a change, never between, and a builder that fails leaves the file alone.
The index holds stems (words.py), so that SQLite needs no stemmer and questions and passages are
cut alike.
"""

import json
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from references.cognates import skeleton
from references.embedding import Vectoriser
from references.passage import Passage, ReferencesError
from references.reader import COLUMNS, FORMAT, Reader, damaged, passage_of, stored_stems
from references.vectors import packed
from references.words import name_key, words

LOCK_TIMEOUT_S = 600
_SCHEMA = f"""
create table meta (key text primary key, value text not null) without rowid;
create table passages (number integer primary key, {COLUMNS.replace("id,", "id text unique,", 1)},
  name_stems text not null, text_stems text not null, checksum text not null);
create virtual table words using fts5 (title, synonyms, body, content='', tokenize='unicode61');
create table names (key text, number integer, primary key (key, number)) without rowid;
create table stems (stem text primary key, count integer not null) without rowid;
create table cognates (skeleton text, word text, primary key (skeleton, word)) without rowid;
create table vectors (number integer primary key, num_vectors integer, data blob not null);
create table arrays (name text primary key, data blob not null) without rowid;
"""
_MODULUS = 2**256
_VECTOR_BATCH = 4096
_VECTOR_CHARS = 300  # of a passage's first line


class Writer:
    """A shelf in the making. It checks no passage: `Shelf` does.

    Args:
        vectorise: makes the vectors of names and texts; without it, words alone are searched.
    """

    def __init__(self, path: Path, vectorise: Vectoriser | None = None) -> None:
        fresh = not path.exists()
        self.db = sqlite3.connect(path, isolation_level=None)
        # Nobody reads this file yet, and a crash discards it: durability comes with the rename.
        self.db.executescript("pragma journal_mode=memory; pragma synchronous=off;")
        if fresh:
            self.db.executescript(_SCHEMA)
        self.db.execute("begin")
        self.meta = dict(self.db.execute("select key, value from meta"))
        self._digest = int(self.meta.get("digest", "0"), 16)
        self._passages = int(self.meta.get("passages", "0"))
        self._counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._vectorise = vectorise
        self._unvectorised: list[tuple[int, tuple[str, ...]]] = []

    def add(self, passage: Passage) -> None:
        """Put a passage in.

        Raises:
            sqlite3.IntegrityError: its id is there already.
        """
        checksum = passage.checksum
        name_stems, text_stems = stored_stems(passage)
        row = (
            *(passage.id, passage.kind, passage.title, json.dumps(passage.synonyms)),
            *(passage.text, passage.specialty, passage.language, passage.source, passage.url),
            *(passage.licence, json.dumps(passage.identifiers), passage.prominence),
            *(name_stems, text_stems, checksum),
        )
        marks = ", ".join("?" * len(row))
        cursor = self.db.execute(
            f"insert into passages ({COLUMNS}, name_stems, text_stems, checksum) values ({marks})",
            row,
        )
        number = int(cursor.lastrowid or 0)
        columns = _indexed(name_stems, text_stems)
        self.db.execute(
            "insert into words (rowid, title, synonyms, body) values (?, ?, ?, ?)",
            (number, *columns),
        )
        keys = {name_key(name, passage.language) for name in (passage.title, *passage.synonyms)}
        self.db.executemany(
            "insert into names values (?, ?)", [(key, number) for key in keys if key]
        )
        self._counts.update(set(" ".join(columns).split()))
        self._digest += int(checksum, 16)
        self._passages += 1
        if passage.language == "en":
            self._add_cognates(passage)
            first_line = passage.text.partition("\n")[0][:_VECTOR_CHARS]
            text = f"{passage.title}. {first_line}"
            self._unvectorised.append((number, (passage.title, *passage.synonyms, text)))
        if len(self._unvectorised) >= _VECTOR_BATCH:
            self._add_vectors()

    def _add_vectors(self) -> None:
        if self._vectorise is not None:
            waiting = self._unvectorised
            vectors = self._vectorise([text for _, texts in waiting for text in texts])
            lengths = [len(texts) for _, texts in waiting]
            rows = zip(waiting, lengths, packed(vectors, lengths), strict=True)
            self.db.executemany(
                "insert into vectors values (?, ?, ?)",
                ((number, length, data) for (number, _), length, data in rows),
            )
        self._unvectorised = []

    def _add_cognates(self, passage: Passage) -> None:
        for word in words(" ".join((passage.title, *passage.synonyms, passage.text))):
            if word not in self._seen:
                self._seen.add(word)
                if bones := skeleton(word):
                    self.db.execute("insert or ignore into cognates values (?, ?)", (bones, word))

    def remove(self, id_: str) -> bool:
        """Take a passage out. Returns whether it was there."""
        query = f"select number, {COLUMNS}, name_stems, text_stems, checksum from passages"
        row = self.db.execute(f"{query} where id = ?", (id_,)).fetchone()
        if row is None:
            return False
        passage = passage_of(row[1:-3])
        columns = _indexed(row[-3], row[-2])
        self.db.execute(
            "insert into words (words, rowid, title, synonyms, body) values ('delete', ?, ?, ?, ?)",
            (row[0], *columns),
        )
        for table in ("passages", "vectors"):
            self.db.execute(f"delete from {table} where number = ?", (row[0],))
        for name in (passage.title, *passage.synonyms):
            pair = (name_key(name, passage.language), row[0])
            self.db.execute("delete from names where key = ? and number = ?", pair)
        self._counts.subtract(set(" ".join(columns).split()))
        self._digest -= int(row[-1], 16)
        self._passages -= 1
        return True

    def put_array(self, name: str, data: bytes) -> None:
        self.db.execute("insert or replace into arrays values (?, ?)", (name, data))

    def finish(self) -> None:
        """Write what was counted, and commit."""
        self._add_vectors()
        self.db.executemany(
            "insert into stems values (?, ?) on conflict do update set count = count + ?",
            ((word, count, count) for word, count in self._counts.items()),
        )
        self.db.execute("delete from stems where count <= 0")
        self.meta |= {
            "format": str(FORMAT),
            "changes": str(int(self.meta.get("changes", "0")) + 1),
            "digest": f"{self._digest % _MODULUS:064x}",
            "passages": str(self._passages),
            "vectors": self._vectorise.name if self._vectorise else "",
        }
        self.db.executemany("insert or replace into meta values (?, ?)", self.meta.items())
        self.db.execute("insert into words (words) values ('optimize')")
        self.db.execute("commit")

    def close(self) -> None:
        self.db.close()


class Unneeded(Exception):
    """Another process has made the change."""


@contextmanager
def changed(
    path: Path,
    vectorise: Vectoriser | None = None,
    *,
    fresh: bool = False,
    unless: Callable[[], bool] = lambda: False,
) -> Iterator[Writer]:
    """Change a shelf as one step: the block writes to a copy, which then takes the file's place.

    Args:
        path: the shelf's file.
        fresh: begin with an empty shelf instead of a copy.
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
                if not fresh:
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
        if isinstance(error, sqlite3.IntegrityError):
            raise
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


def problems_of(path: Path) -> list[str]:
    """Return what is wrong with a shelf: its pages, its index, each passage's checksum."""
    found = []
    reader = Reader(path)
    total = count = 0
    try:
        found += [
            f"{path}: {row[0]}: restore or build it again"
            for row in reader.db.execute("pragma quick_check")
            if row[0] != "ok"
        ]
        for passage, recorded in reader.passages():
            count += 1
            total += int(recorded, 16)
            if passage.checksum != recorded:
                found.append(f"passage {passage.id}: its content and its checksum differ")
    except sqlite3.Error as error:
        raise damaged(path, error) from None
    if count != reader.num_passages or f"{total % _MODULUS:064x}" != reader.meta["digest"]:
        found.append(
            f"{path}: {count} passages are there and {reader.num_passages} were recorded, or the "
            "digest differs: restore or build it again"
        )
    return found


def _indexed(name_stems: str, text_stems: str) -> tuple[str, str, str]:
    """Return the columns of the full-text index: title, synonyms, text."""
    title, _, synonyms = name_stems.partition(",")
    return title, synonyms.replace(",", " "), text_stems
