"""One version of a shelf, open for reading: what the search asks of a file or a server."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from references.embedding import Floats, Nearness
from references.passage import LISTS, Passage
from references.words import french, stems

FORMAT = 2  # of the stored data: raise it when the schema or the way to cut words changes
MAX_KEPT = 2000  # passages' stems, about 4 KB each, for each thread
MAX_COUNTS = 200_000  # stems whose counts are kept
SOURCES = (
    "select source, licence, specialty, language, count(*) from passages "
    "group by source, licence, specialty, language"
)
COLUMNS = (
    "id, kind, title, synonyms, text, specialty, language, source, url, licence, identifiers, "
    "prominence, wordings_en, wordings_fr"
)
STORED = f"{COLUMNS}, name_stems, text_stems, checksum"
_FIELDS = frozenset(COLUMNS.split(", "))
RANKED_BY = "id, kind, specialty, prominence, name_stems, text_stems"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a passage is ranked by.

    Attributes:
        names: the stems of each of its names, the title's first.
        name_stems: of all names.
        stems: of names and text.
    """

    id: str
    kind: str
    specialty: str | None
    prominence: float
    names: tuple[frozenset[str], ...]
    name_stems: frozenset[str]
    stems: frozenset[str]


@dataclass(frozen=True, slots=True)
class Source:
    """What some passages have in common, and how many they are."""

    source: str
    licence: str
    specialty: str | None
    language: str
    passages: int


class Version(ABC):
    """One version of a shelf. For one thread at a time.

    Attributes:
        meta: what is recorded with the shelf; `changes`, `digest`, `passages`, `vectors`.
    """

    def __init__(self, meta: Mapping[str, str]) -> None:
        self.meta = meta
        self.num_passages = int(meta["passages"])
        self._counts: dict[str, int] = {}
        self._candidates: dict[int, Candidate] = {}
        self._words: frozenset[str] | None = None

    @property
    def version(self) -> str:
        """Return the number of changes so far and the beginning of the content's digest."""
        return f"{self.meta['changes']}-{self.meta['digest'][:12]}"

    def counts(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Return, for each stem, in how many passages it is."""
        missing = [word for word in set(wanted) if word not in self._counts]
        if missing:
            if len(self._counts) > MAX_COUNTS:  # bounds the memory
                self._counts.clear()
            self._counts.update(dict.fromkeys(missing, 0))
            self._counts.update(self._stored_counts(missing))
        return self._counts

    def words(self) -> Set[str]:
        """Return the English words of the shelf, folded, those of cognates.MIN_LETTERS or more."""
        if self._words is None:
            self._words = frozenset(self._stored_words())
        return self._words

    def fetch(self, numbers: Iterable[int]) -> dict[int, Candidate]:
        """Return what passages are ranked by, by number; those of late are kept in memory."""
        wanted = sorted(numbers)
        missing = [number for number in wanted if number not in self._candidates]
        new = {row[0]: _candidate(row[1:]) for row in self._rows(missing)} if missing else {}
        found = {n: new[n] if n in new else self._candidates[n] for n in wanted}
        too_many = max(0, len(self._candidates) + len(new) - MAX_KEPT)
        for number in list(self._candidates)[:too_many]:  # those longest there
            del self._candidates[number]
        self._candidates |= new
        return found

    @abstractmethod
    def _stored_counts(self, wanted: Sequence[str]) -> Iterable[tuple[str, int]]: ...

    @abstractmethod
    def _stored_words(self) -> Iterable[str]: ...

    @abstractmethod
    def _rows(self, numbers: Sequence[int]) -> Iterable[Sequence[Any]]:
        """Yield number and RANKED_BY of passages."""

    @abstractmethod
    def cognates(self, skeletons: Sequence[str]) -> list[tuple[str, str]]:
        """Return pairs of a skeleton and an English word of the shelf that has it."""

    @abstractmethod
    def named(self, keys: Sequence[str], limit: int) -> list[int]:
        """Return numbers of passages that have one of the name keys."""

    @abstractmethod
    def matches(
        self, wanted: Sequence[str], limit: int, *, names_only: bool = False
    ) -> list[tuple[int, float]]:
        """Return number and score by rarity of passages with any of the stems, the best first.

        Args:
            names_only: the stems are looked for in titles and synonyms alone.
        """

    @abstractmethod
    def nearest(self, vector: Floats, among: Iterable[int], limit: int) -> dict[int, Nearness]:
        """Return the nearness of the passages in `among`, and of about `limit` nearest ones."""

    @abstractmethod
    def by_id(self, ids: Sequence[str]) -> dict[str, Passage]: ...

    @abstractmethod
    def passages(self) -> Iterator[tuple[Passage, str]]:
        """Yield every passage with its recorded checksum, by number."""

    @abstractmethod
    def array(self, name: str) -> bytes | None: ...

    @abstractmethod
    def sources(self) -> list[Source]: ...


def sorted_sources(rows: Iterable[Sequence[Any]]) -> list[Source]:
    """Return the rows of SOURCES in an order that no server's language decides."""
    found = [Source(*row) for row in rows]
    return sorted(found, key=lambda s: (s.source, s.licence, s.specialty or "", s.language))


def stored_stems(passage: Passage) -> tuple[str, str]:
    """Return the stems of the names, a comma between names, and those of the text."""
    names = (
        " ".join(
            french(s) if language == "fr" != passage.language else s for s in stems(name, language)
        )
        for name, language in passage.names()
    )
    return ",".join(names), " ".join(stems(passage.text, passage.language))


def _candidate(row: Sequence[Any]) -> Candidate:
    id_, kind, specialty, prominence, name_stems, text_stems = row
    names = tuple(frozenset(name.split()) for name in name_stems.split(","))
    of_names = frozenset[str]().union(*names)
    whole = of_names.union(text_stems.split())
    return Candidate(id_, kind, specialty, prominence, names, of_names, whole)


def passage_of(row: Sequence[object], names: Sequence[str] = COLUMNS.split(", ")) -> Passage:
    values = {name: value for name, value in zip(names, row, strict=True) if name in _FIELDS}
    for name in LISTS:
        values[name] = tuple(json.loads(str(values.get(name, "[]"))))
    return Passage(**values)  # type: ignore[arg-type]


def passages_in(cursor: Any) -> Iterator[Passage]:
    """Yield the passages of whole rows of the table, which an older version may have made."""
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield passage_of(row, names)
