"""One version of a shelf's file, open for reading."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from references.embedding import Floats
from references.passage import Passage, ReferencesError
from references.vectors import Nearness, PassageVectors
from references.words import stems

FORMAT = 1  # of the file: raise it when the schema or the way to cut words changes
MAX_KEPT = 2000  # passages with their stems, about 5 KB each, for each thread
MAX_COMPARED = 200_000  # passages whose vectors are held in memory: 400 MB at three vectors each
COLUMNS = (
    "id, kind, title, synonyms, text, specialty, language, source, url, licence, identifiers, "
    "prominence"
)
_TITLE, _SYNONYMS, _TEXT = 8.0, 5.0, 1.0  # BM25 weights of the index's columns


@dataclass(frozen=True, slots=True)
class Candidate:
    """A passage, and the stems of each of its names, of all names, and of names and text."""

    passage: Passage
    names: tuple[frozenset[str], ...]
    name_stems: frozenset[str]
    stems: frozenset[str]


def stored_stems(passage: Passage) -> tuple[str, str]:
    """Return the stems of the names, a comma between names, and those of the text."""
    names = (" ".join(stems(n, passage.language)) for n in (passage.title, *passage.synonyms))
    return ",".join(names), " ".join(stems(passage.text, passage.language))


def _candidate(row: Sequence[Any]) -> Candidate:
    names = tuple(frozenset(name.split()) for name in row[-2].split(","))
    of_names = frozenset[str]().union(*names)
    return Candidate(passage_of(row[:-2]), names, of_names, of_names.union(row[-1].split()))


class Reader:
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
            self.meta = dict(self.db.execute("select key, value from meta"))
            found = int(self.meta["format"])
        except (sqlite3.Error, KeyError, ValueError) as error:
            raise damaged(path, error) from None
        if found != FORMAT:
            raise ReferencesError(
                f"{path} has format {found}, and this version reads {FORMAT}: build it again"
            )
        self.num_passages = int(self.meta["passages"])
        self._counts: dict[str, int] = {}
        self._candidates: dict[int, Candidate] = {}

    @property
    def version(self) -> str:
        """Return the number of changes so far and the beginning of the content's digest."""
        return f"{self.meta['changes']}-{self.meta['digest'][:12]}"

    def counts(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Return, for each stem, in how many passages it is."""
        missing = [word for word in set(wanted) if word not in self._counts]
        if missing:
            if len(self._counts) > 200_000:  # bounds the memory
                self._counts.clear()
            self._counts.update(dict.fromkeys(missing, 0))
            self._counts.update(
                self.db.execute(_with("select stem, count from stems where stem", missing), missing)
            )
        return self._counts

    def cognates(self, skeletons: Sequence[str]) -> list[tuple[str, str]]:
        """Return pairs of a skeleton and an English word of the shelf that has it."""
        query = _with("select skeleton, word from cognates where skeleton", skeletons)
        return list(self.db.execute(query, list(skeletons)))

    def named(self, keys: Sequence[str], limit: int) -> list[int]:
        """Return numbers of passages that have one of the name keys."""
        query = _with("select number from names where key", keys) + f" limit {limit:d}"
        return [number for (number,) in self.db.execute(query, list(keys))]

    def matches(self, expression: str, limit: int) -> list[tuple[int, float]]:
        """Return number and BM25 score, the best first; the expression is FTS5's."""
        query = (
            "select rowid, -bm25(words, ?, ?, ?) from words where words match ? "
            "order by 2 desc limit ?"
        )
        values = (_TITLE, _SYNONYMS, _TEXT, expression, limit)
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

    def fetch(self, numbers: Iterable[int]) -> dict[int, Candidate]:
        """Return passages by number; those of late are kept in memory."""
        wanted = sorted(numbers)
        missing = [number for number in wanted if number not in self._candidates]
        if len(self._candidates) + len(missing) > MAX_KEPT:
            self._candidates.clear()
            missing = wanted
        columns = f"number, {COLUMNS}, name_stems, text_stems"
        query = _with(f"select {columns} from passages where number", missing)
        for row in self.db.execute(query, missing) if missing else ():
            self._candidates[row[0]] = _candidate(row[1:])
        return {number: self._candidates[number] for number in wanted}

    def by_id(self, ids: Sequence[str]) -> dict[str, Passage]:
        query = _with(f"select {COLUMNS} from passages where id", ids)
        return {row[0]: passage_of(row) for row in self.db.execute(query, list(ids))}

    def passages(self) -> Iterator[tuple[Passage, str]]:
        """Yield every passage with its recorded checksum, by number."""
        query = f"select {COLUMNS}, checksum from passages order by number"
        for row in self.db.execute(query):
            yield passage_of(row[:-1]), row[-1]

    def array(self, name: str) -> bytes | None:
        row = self.db.execute("select data from arrays where name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])


def damaged(path: Path, error: Exception) -> ReferencesError:
    return ReferencesError(
        f"{path} is not a shelf, or damaged ({error}): restore it, or build it again"
    )


def passage_of(row: Sequence[object]) -> Passage:
    names = COLUMNS.split(", ")
    values = dict(zip(names, row, strict=True))
    for name in ("synonyms", "identifiers"):
        values[name] = tuple(json.loads(str(values[name])))
    return Passage(**values)  # type: ignore[arg-type]


def _with(query: str, values: Sequence[object]) -> str:
    return f"{query} in ({', '.join('?' * len(values))})"
