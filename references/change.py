"""A change of a shelf: passages in and out, and what is counted along the way."""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from references.cognates import skeleton
from references.embedding import Floats, Vectoriser
from references.passage import Passage
from references.version import FORMAT, passage_of, stored_stems
from references.words import name_key, words

MODULUS = 2**256  # of the digest, the sum of all passages' SHA-256
_VECTOR_BATCH = 4096
_VECTOR_CHARS = 300  # of a passage's first line


class TakenId(Exception):
    """A passage of this id is on the shelf."""


class Unneeded(Exception):
    """Another process has made the change."""


class Change(ABC):
    """A shelf in the making. It checks no passage: `Shelf` does.

    Args:
        meta: of the shelf before; {} for a new one.
        vectorise: makes the vectors of names and texts; without it, words alone are searched.
    """

    def __init__(self, meta: Mapping[str, str], vectorise: Vectoriser | None) -> None:
        self.meta = dict(meta)
        self._digest = int(self.meta.get("digest", "0"), 16)
        self._passages = int(self.meta.get("passages", "0"))
        self._counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._vectorise = vectorise
        self._unvectorised: list[tuple[int, tuple[str, ...]]] = []

    def add(self, passage: Passage) -> None:
        """Put a passage in.

        Raises:
            TakenId: its id is there already.
        """
        checksum = passage.checksum
        name_stems, text_stems = stored_stems(passage)
        row = (
            *(passage.id, passage.kind, passage.title, json.dumps(passage.synonyms)),
            *(passage.text, passage.specialty, passage.language, passage.source, passage.url),
            *(passage.licence, json.dumps(passage.identifiers), passage.prominence),
            *(json.dumps(passage.wordings_en), json.dumps(passage.wordings_fr)),
            *(name_stems, text_stems, checksum),
        )
        columns = indexed(name_stems, text_stems)
        number = self._insert(row, columns)
        keys = {name_key(name, language) for name, language in passage.names()}
        self._insert_names([(key, number) for key in keys if key])
        self._counts.update(set(" ".join(columns).split()))
        self._digest += int(checksum, 16)
        self._passages += 1
        if passage.language == "en":
            self._note_cognates(passage)
            first_line = passage.text.partition("\n")[0][:_VECTOR_CHARS]
            text = f"{passage.title}. {first_line}"
            names = (passage.title, *passage.synonyms, *passage.wordings_en)
            self._unvectorised.append((number, (*names, text)))
        if len(self._unvectorised) >= _VECTOR_BATCH:
            self._add_vectors()

    def _note_cognates(self, passage: Passage) -> None:
        new = set(words(" ".join((passage.title, *passage.synonyms, passage.text)))) - self._seen
        self._seen |= new
        self._insert_cognates([(bones, word) for word in new if (bones := skeleton(word))])

    def _add_vectors(self) -> None:
        if self._vectorise is not None and self._unvectorised:
            texts = [text for _, texts in self._unvectorised for text in texts]
            lengths = [len(texts) for _, texts in self._unvectorised]
            numbers = [number for number, _ in self._unvectorised]
            self._insert_vectors(numbers, lengths, self._vectorise(texts))
        self._unvectorised = []

    def remove(self, id_: str) -> bool:
        """Take a passage out. Returns whether it was there."""
        found = self._row(id_)
        if found is None:
            return False
        self._add_vectors()
        number, row = found
        columns = indexed(row[-3], row[-2])
        self._delete(number, passage_of(row[:-3]), columns)
        self._counts.subtract(set(" ".join(columns).split()))
        self._digest -= int(row[-1], 16)
        self._passages -= 1
        return True

    def finish(self) -> None:
        """Write what was counted, and make the change final."""
        self._add_vectors()
        self.meta |= {
            "format": str(FORMAT),
            "changes": str(int(self.meta.get("changes", "0")) + 1),
            "digest": f"{self._digest % MODULUS:064x}",
            "passages": str(self._passages),
            "vectors": self._vectorise.name if self._vectorise else "",
        }
        self._finish([(word, count) for word, count in self._counts.items() if count])

    @abstractmethod
    def put_array(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def ids_of(self, source: str) -> list[str]:
        """Return the ids of a source's passages."""

    @abstractmethod
    def _insert(self, row: Sequence[Any], columns: tuple[str, str, str]) -> int:
        """Store a passage and index its columns; returns its number."""

    @abstractmethod
    def _insert_names(self, pairs: Sequence[tuple[str, int]]) -> None: ...

    @abstractmethod
    def _insert_cognates(self, pairs: Sequence[tuple[str, str]]) -> None: ...

    @abstractmethod
    def _insert_vectors(
        self, numbers: Sequence[int], lengths: Sequence[int], vectors: Floats
    ) -> None:
        """Store vectors (N, D): `lengths` says how many each passage has, its text's last."""

    @abstractmethod
    def _row(self, id_: str) -> tuple[int, Sequence[Any]] | None:
        """Return a passage's number, and its row as `_insert` stored it."""

    @abstractmethod
    def _delete(self, number: int, passage: Passage, columns: tuple[str, str, str]) -> None: ...

    @abstractmethod
    def _finish(self, counts: Iterable[tuple[str, int]]) -> None:
        """Add to the stems' counts, store `meta`, and commit."""


def indexed(name_stems: str, text_stems: str) -> tuple[str, str, str]:
    """Return the columns of the full-text index: title, synonyms, text."""
    title, _, synonyms = name_stems.partition(",")
    return title, synonyms.replace(",", " "), text_stems
