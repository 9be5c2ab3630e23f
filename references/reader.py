"""One version of a shelf's file, open for reading."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from references.embedding import Floats, Nearness, PassageVectors
from references.passage import Passage, ReferencesError
from references.version import (
    COLUMNS,
    FORMAT,
    RANKED_BY,
    SOURCES,
    Source,
    Version,
    passage_of,
    sorted_sources,
)

MAX_COMPARED = 200_000  # passages whose vectors are held in memory: 400 MB at three vectors each
MAX_SCORED = 30_000  # passages with a word, of which the best are looked for: 20 ms
_TITLE, _SYNONYMS, _TEXT = 8.0, 5.0, 1.0  # BM25 weights of the index's columns


class Reader(Version):
    """One version of a shelf, open for reading. For one thread at a time.

    Args:
        vectors: by version, what readers of several threads share; each keeps the newest one.

    Raises:
        ReferencesError: there is no shelf, or the file is not one.
    """

    def __init__(self, path: Path, vectors: dict[str, PassageVectors] | None = None) -> None:
        self.path = path
        self._vectors = {} if vectors is None else vectors
        if not path.is_file():
            raise ReferencesError(
                f"there is no shelf at {path}: python -m references --shelf {path} build"
            )
        try:
            address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            self.db = sqlite3.connect(address, uri=True, check_same_thread=False)
            meta = dict(self.db.execute("select key, value from meta"))
            found = int(meta["format"])
            super().__init__(meta)
        except (sqlite3.Error, KeyError, ValueError) as error:
            raise damaged(path, error) from None
        if found != FORMAT:
            raise ReferencesError(
                f"{path} has format {found}, and this version reads {FORMAT}: build it again"
            )

    def _stored_counts(self, wanted: Sequence[str]) -> Iterable[tuple[str, int]]:
        return self.db.execute(
            _with("select stem, count from stems where stem", wanted), list(wanted)
        )

    def _stored_words(self) -> Iterable[str]:
        return (word for (word,) in self.db.execute("select word from cognates"))

    def cognates(self, skeletons: Sequence[str]) -> list[tuple[str, str]]:
        query = _with("select skeleton, word from cognates where skeleton", skeletons)
        return list(self.db.execute(query, list(skeletons)))

    def named(self, keys: Sequence[str], limit: int) -> list[int]:
        query = _with("select number from names where key", keys) + f" limit {limit:d}"
        return [number for (number,) in self.db.execute(query, list(keys))]

    def matches(
        self, wanted: Sequence[str], limit: int, *, names_only: bool = False
    ) -> list[tuple[int, float]]:
        """Return number and BM25 score of passages with any of the stems, the best first.

        Of those with a word that more than MAX_SCORED have, the ones that came first are scored.
        """
        expression = " OR ".join(f'"{s}"' for s in wanted)
        if names_only:
            expression = f"{{title synonyms}} : ({expression})"
        query = (
            "select * from (select rowid, -bm25(words, ?, ?, ?) from words where words match ? "
            "limit ?) order by 2 desc limit ?"
        )
        values = (_TITLE, _SYNONYMS, _TEXT, expression, MAX_SCORED, limit)
        return list(self.db.execute(query, values))

    def nearest(self, vector: Floats, among: Iterable[int], limit: int) -> dict[int, Nearness]:
        """Return the nearness of the passages in `among`, and of the `limit` nearest ones.

        A shelf of more than MAX_COMPARED passages is not searched for the nearest ones.
        """
        if self.num_passages > MAX_COMPARED:
            query = _with("select number, num_vectors, data from vectors where number", [*among])
            return PassageVectors(self.db.execute(query, [*among])).all(vector)
        found = self._vectors.get(self.version)
        if found is None:
            query = "select number, num_vectors, data from vectors order by number"
            found = PassageVectors(self.db.execute(query))
            self._vectors.clear()
            self._vectors[self.version] = found
        return found.nearest(vector, among, limit)

    def _rows(self, numbers: Sequence[int]) -> Iterable[Sequence[Any]]:
        query = f"select number, {RANKED_BY} from passages where number"
        return self.db.execute(_with(query, numbers), list(numbers))

    def by_id(self, ids: Sequence[str]) -> dict[str, Passage]:
        query = _with(f"select {COLUMNS} from passages where id", ids)
        return {row[0]: passage_of(row) for row in self.db.execute(query, list(ids))}

    def passages(self) -> Iterator[tuple[Passage, str]]:
        query = f"select {COLUMNS}, checksum from passages order by number"
        for row in self.db.execute(query):
            yield passage_of(row[:-1]), row[-1]

    def array(self, name: str) -> bytes | None:
        row = self.db.execute("select data from arrays where name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def sources(self) -> list[Source]:
        return sorted_sources(self.db.execute(SOURCES))


def damaged(path: Path, error: Exception) -> ReferencesError:
    return ReferencesError(
        f"{path} is not a shelf, or damaged ({error}): restore it, or build it again"
    )


def _with(query: str, values: Sequence[object]) -> str:
    return f"{query} in ({', '.join('?' * len(values))})"
