"""A change of a shelf on PostgreSQL, inside a transaction, and its tables."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from references.change import Change, TakenId
from references.embedding import Floats, Vectoriser
from references.passage import Passage
from references.postgres.version import literal
from references.version import STORED

SCHEMA = "polyclinic_references"
_TABLES = f"""
create schema if not exists {SCHEMA};
create table if not exists meta (key text primary key, value text not null);
create table if not exists passages (number bigint generated always as identity primary key,
  {", ".join(f"{name} text" for name in STORED.split(", ") if name != "prominence")},
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
            db.execute(_VECTORS.format(dimensions=size))
        if was_there and not meta:
            for table in _EMPTY:
                if db.execute("select to_regclass(%s)", (f"{SCHEMA}.{table}",)).fetchone()[0]:
                    db.execute(f"delete from {table}")

    def _insert(self, row: Sequence[Any], columns: tuple[str, str, str]) -> int:
        marks = ", ".join(["%s"] * len(row))
        found = self.db.execute(
            f"insert into passages ({STORED}, words) values ({marks}, %s::tsvector) "
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
                    copy.write_row((number, at == end - 1, literal(vectors[at])))

    def _row(self, id_: str) -> tuple[int, Sequence[Any]] | None:
        query = f"select number, {STORED} from passages where id = %s"
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
