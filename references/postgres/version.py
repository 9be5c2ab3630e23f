"""One version of a shelf on PostgreSQL, read in a transaction."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from references.embedding import Floats, Nearness
from references.passage import Passage
from references.version import (
    COLUMNS,
    RANKED_BY,
    SOURCES,
    Source,
    Version,
    passage_of,
    sorted_sources,
)

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


class PostgresVersion(Version):
    """One version; `db` is the connection, in a transaction that keeps it as it is."""

    db: Any

    def _stored_counts(self, wanted: Sequence[str]) -> Iterable[tuple[str, int]]:
        query = "select stem, count from stems where stem = any(%s)"
        rows: list[tuple[str, int]] = self.db.execute(query, (list(wanted),)).fetchall()
        return rows

    def _rows(self, numbers: Sequence[int]) -> Iterable[Sequence[Any]]:
        query = f"select number, {RANKED_BY} from passages where number = any(%s)"
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
        values = {"v": literal(vector), "limit": limit, "among": list(among)}
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


def literal(vector: Floats) -> str:
    """Return a vector (D,) as pgvector reads it."""
    return "[" + ",".join(f"{value:.5g}" for value in vector.tolist()) + "]"
