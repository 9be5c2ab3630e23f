"""A shelf of passages: search it, and change it."""

import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from references.asked import identifiers
from references.change import MODULUS, TakenId, Unneeded
from references.diagnosis import ARRAYS, MAX_MEANINGS, Match, Signs
from references.embedding import Vectoriser
from references.passage import Passage, PassagesRefused, ReferencesError, checked
from references.query import read_query
from references.ranking import Ranked, Weights, rank
from references.store import FileEngine, engine_of
from references.version import Source, Version
from references.words import guess_language, languages

# Of a passage's name, cover, nearness by name and by text: a logistic regression between what was
# found rightly and absent topics (development sets of scripts.references_evaluation).
_SUPPORT = (0.33, 0.37, 0.09, 0.21)
THRESHOLD = 0.53  # chosen on absent topics: no dose of a drug that does not exist
_ALSO, _SHARE = 0.35, 0.5  # least support of a further passage, and its share of the best one's
_SURE = 0.8  # support that a search in another language hardly surpasses
_LEAST = 0.2  # support of a term, for a sign in other words to stand for it
_SOFTNESS = 1.0  # score by which a term falls behind the best one, for 1/e of its fit


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found for a question.

    Attributes:
        score: the higher the better; of one question's hits only.
        support: 0 to 1, how much of the question the passage answers to; what
            "nothing found" is decided by.
    """

    passage: Passage
    score: float
    support: float


class Shelf:
    """A shelf in a file or on a server. Safe to use from several threads and processes.

    A search sees one version as a whole, and the newest that was in place when it began.

    Args:
        place: the shelf's file, or postgresql://...; it may appear later.
        vectorise: as the shelf was built with; without it, the search is by words alone.
        weights: of the ranking.
        threshold: least `support` of the best hit; below it, nothing was found.
    """

    def __init__(
        self,
        place: Path | str,
        *,
        vectorise: Vectoriser | None = None,
        weights: Weights | None = None,
        threshold: float = THRESHOLD,
    ) -> None:
        self._engine = engine_of(place)
        self._vectorise = vectorise
        self._weights = weights or Weights()
        self._threshold = threshold
        self._signs: tuple[str, Signs] | None = None

    @property
    def place(self) -> str:
        """Return the file, or the server without its password, for messages."""
        return self._engine.place

    @property
    def path(self) -> Path:
        """Return the file of a shelf that lies in one."""
        return Path(self._engine.place)

    @property
    def is_there(self) -> bool:
        return self._engine.is_there()

    @property
    def version(self) -> str:
        with self._reading() as reader:
            return reader.version

    @property
    def num_passages(self) -> int:
        with self._reading() as reader:
            return reader.num_passages

    @property
    def has_signs(self) -> bool:
        """Return whether the shelf knows the signs of diseases, for `diagnose`."""
        with self._reading() as reader:
            return reader.array(ARRAYS[0]) is not None

    def search(
        self,
        question: str,
        *,
        specialty: str | None = None,
        language: str | None = None,
        limit: int = 3,
    ) -> list[Hit]:
        """Return the best passages for a question. Returns [] if the shelf has nothing on it.

        Args:
            specialty: its passages rank a little higher; the others stay in reach.
            language: of the question, en or fr; default: what its words look like.

        Raises:
            ReferencesError: there is no shelf, or its file is damaged.
        """
        ids = identifiers(question)
        if ids and (named := self.get(ids)):
            return [Hit(passage, 0.0, 1.0) for passage in list(named.values())[:limit]]
        spoken = (language,) if language else languages(question)
        hits: list[Hit] = []
        for one in spoken:  # both where nothing tells which, unless the first fits well
            if _best(hits) < _SURE:
                tried = self.hits(question, specialty=specialty, language=one, limit=limit)
                hits = max(hits, tried, key=_best)
        best = _best(hits)
        least = max(_ALSO, _SHARE * best)
        return [hit for hit in hits if hit.support >= least] if best >= self._threshold else []

    def hits(
        self,
        question: str,
        *,
        specialty: str | None = None,
        language: str | None = None,
        limit: int = 3,
    ) -> list[Hit]:
        """Return the best passages as `search` does, however little they support."""
        ranked = self.ranked(question, specialty=specialty, language=language, limit=limit)
        return [Hit(r.passage, r.score, support_of(r)) for r in ranked]

    def ranked(
        self, question: str, *, specialty: str | None, language: str | None, limit: int
    ) -> list[Ranked]:
        """Return the best passages, however little they have to do with the question."""
        with self._reading() as reader:
            query = read_query(question, language or guess_language(question), reader)
            vector = self._vectorise([query.english])[0] if self._vectorise else None
            return rank(query, vector, reader, specialty, self._weights, limit)

    def diagnose(
        self, signs: Sequence[str], *, language: str | None = None, limit: int = 5
    ) -> list[Match]:
        """Return the diseases whose recorded signs match best; it is no diagnosis.

        Args:
            signs: each in the ontology's or everyday words, English or French; `split_signs`
                takes them out of a question.
            language: of the signs, en or fr; default: what their words look like.

        Raises:
            ReferencesError: the shelf has no signs.
        """
        with self._reading() as reader:
            if self._signs is None or self._signs[0] != reader.version:
                self._signs = (reader.version, Signs(reader.array))
        spoken = language or guess_language("; ".join(signs))
        found = self._signs[1].rank(signs, lambda sign: self._meanings(sign, spoken), 2 * limit)
        there = self.get(match.disease for match in found)
        return [match for match in found if match.disease in there][:limit]

    def _meanings(self, sign: str, language: str) -> list[tuple[str, float]]:
        """Return terms that a sign in other words may stand for, and how well each fits."""
        ranked = self.ranked(sign, specialty=None, language=language, limit=4 * MAX_MEANINGS)
        terms = [r for r in ranked if r.passage.kind == "term" and support_of(r) >= _LEAST]
        return [(r.passage.id, math.exp((r.score - terms[0].score) / _SOFTNESS)) for r in terms]

    def get(self, ids: Iterable[str]) -> dict[str, Passage]:
        """Return the passages that are there, by id."""
        with self._reading() as reader:
            return reader.by_id(list(ids))

    def passages(self) -> Iterator[Passage]:
        """Yield every passage, in the order in which they were added."""
        with self._reading() as reader:
            for passage, _ in reader.passages():
                yield passage

    def sources(self) -> list[Source]:
        """Return what the passages are of, and how many."""
        with self._reading() as reader:
            return reader.sources()

    def add(self, passages: Iterable[Passage]) -> str:
        """Add passages, all of them or none. Returns the new version.

        Raises:
            PassagesRefused: names each bad passage, and each id that is there already.
        """
        return self._change(passages, replace=False)

    def replace(self, passages: Iterable[Passage]) -> str:
        """Add passages; one whose id is there takes its place. Returns the new version."""
        return self._change(passages, replace=True)

    def _change(self, passages: Iterable[Passage], *, replace: bool) -> str:
        new = list(checked(passages))
        with self._engine.changed(self._vectorise, create=True) as writer:
            taken = []
            for passage in new:
                if replace:
                    writer.remove(passage.id)
                try:
                    writer.add(passage)
                except TakenId:
                    taken.append(f"passage {passage.id}: the id is on the shelf: replace it")
            if taken:
                raise PassagesRefused(*taken)
        return self.version

    def remove(self, ids: Iterable[str] = (), *, source: str | None = None) -> str:
        """Take passages out, all of them or none. Returns the new version.

        Args:
            source: all passages of it go as well.

        Raises:
            PassagesRefused: names the ids that are not there, and a source without passages.
        """
        with self._engine.changed(self._vectorise) as writer:
            missing = [
                f"passage {id_}: there is none of this id: see `ls`"
                for id_ in dict.fromkeys(ids)
                if not writer.remove(id_)
            ]
            if source is not None:
                of_source = writer.ids_of(source)
                if not of_source:
                    missing.append(f"source {source[:200]!r}: it has no passages: see `ls`")
                for id_ in of_source:
                    writer.remove(id_)
            if missing:
                raise PassagesRefused(*missing)
        return self.version

    def verify(self) -> list[str]:
        """Return what is wrong with the shelf and its passages; [] if nothing is."""
        found = self._engine.problems()
        total = count = 0
        with self._engine.reading() as reader:
            for passage, recorded in reader.passages():
                count += 1
                total += int(recorded, 16)
                if passage.checksum != recorded:
                    found.append(f"passage {passage.id}: its content and its checksum differ")
            if count != reader.num_passages or f"{total % MODULUS:064x}" != reader.meta["digest"]:
                found.append(
                    f"{self.place}: {count} passages are there and {reader.num_passages} were "
                    "recorded, or the digest differs: restore or build it again"
                )
        return found

    def connection(self) -> sqlite3.Connection:
        """Return this thread's connection to the version in place of a file, for measurements."""
        assert isinstance(self._engine, FileEngine), "measured on files only"
        with self._engine.reading() as reader:
            return reader.db

    @contextmanager
    def _reading(self) -> Iterator[Version]:
        with self._engine.reading() as reader:
            built_with = reader.meta["vectors"]
            if self._vectorise is not None and built_with != self._vectorise.name:
                raise ReferencesError(
                    f"{self.place} was built with the vectors of {built_with or 'nothing'!r}, not "
                    f"of {self._vectorise.name!r}: build it again"
                )
            yield reader


def build(
    place: Path | str,
    passages: Iterable[Passage],
    *,
    vectorise: Vectoriser | None = None,
    arrays: Mapping[str, bytes] | None = None,
    origin: Mapping[str, str] | None = None,
    progress: Callable[[], object] = lambda: None,
    unless: Callable[[], bool] = lambda: False,
) -> Shelf:
    """Make a shelf of its own, in place of the one that may be there.

    Args:
        arrays: further data by name, such as the diagnosis' (diagnosis.py).
        origin: recorded with the shelf, such as the sources' checksums.
        progress: called after each passage.
        unless: asked when the lock is held: whether another process has just built it.

    Raises:
        ReferencesError: a passage is refused, or the disk; the shelf before stays as it is.
    """
    shelf = Shelf(place, vectorise=vectorise)
    with (
        suppress(Unneeded),
        engine_of(place).changed(vectorise, fresh=True, unless=unless) as writer,
    ):
        for passage in checked(passages):
            writer.add(passage)
            progress()
        for name, data in (arrays or {}).items():
            writer.put_array(name, data)
        writer.meta |= dict(origin or {})
    return shelf


def _best(hits: Iterable[Hit]) -> float:
    return max((hit.support for hit in hits), default=0.0)


def support_of(ranked: Ranked) -> float:
    """Return how much of the question a passage answers to, 0 to 1."""
    parts = (ranked.name, ranked.cover, ranked.near, ranked.near_text)
    return sum(weight * max(0.0, part) for weight, part in zip(_SUPPORT, parts, strict=True))
