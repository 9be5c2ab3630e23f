"""Vectors as a shelf keeps them: of each passage its names' and its text's, one byte a number."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from references.embedding import Floats


def packed(vectors: Floats, lengths: Sequence[int]) -> Iterator[bytes]:
    """Yield the bytes of each passage's vectors; `lengths` says how many each has.

    Only a vector's direction is kept: it is stretched until its largest number is 127.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    stretched = np.divide(127 * vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    rounded = np.round(stretched).astype(np.int8)
    start = 0
    for length in lengths:
        yield rounded[start : start + length].tobytes()
        start += length


Nearness = tuple[float, float]
"""Cosines of a question with the nearest name of a passage, and with its text."""


class PassageVectors:
    """The vectors of some passages, in memory.

    Args:
        rows: number of a passage, how many vectors it has (its names', then its text's), and
            the vectors, packed.
    """

    def __init__(self, rows: Iterable[tuple[int, int, bytes]]) -> None:
        found = list(rows)
        self._numbers = np.array([number for number, _, _ in found], np.int64)
        lengths = np.array([length for _, length, _ in found], np.int64)
        ends = np.cumsum(lengths)
        self._starts, self._texts = ends - lengths, ends - 1
        total = int(lengths.sum())
        data = np.frombuffer(b"".join(data for _, _, data in found), np.int8)
        vectors = data.reshape(total, -1 if total else 0).astype(np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        np.divide(vectors, norms, out=vectors, where=norms > 0)
        self._vectors = np.ascontiguousarray(vectors.T)  # (D, N): twice as fast for one question
        self._owners = np.repeat(np.arange(len(found)), lengths)
        self._place = {int(number): at for at, number in enumerate(self._numbers)}

    def all(self, vector: Floats) -> dict[int, Nearness]:
        count = len(self._numbers)
        return self._of(vector @ self._vectors, range(count)) if count else {}

    def nearest(self, vector: Floats, among: Iterable[int], limit: int) -> dict[int, Nearness]:
        """Return the nearness of `among`, and of the nearest by name and by text.

        They are about `limit` each: of a passage with several near names, each counts.
        """
        if not len(self._numbers):
            return {}
        cosines = vector @ self._vectors
        places = {self._place[number] for number in among if number in self._place}
        places |= set(_best(cosines[self._texts], limit))
        names = cosines.copy()
        names[self._texts] = -1
        places |= set(self._owners[_best(names, limit)].tolist())
        return self._of(cosines, places)

    def _of(self, cosines: Floats, places: Iterable[int]) -> dict[int, Nearness]:
        at = np.fromiter(places, np.int64)
        starts, texts = self._starts[at], self._texts[at]
        # Of each passage the largest of its names: reduceat wants start and end in turn.
        bounds = np.stack([starts, texts], axis=1).ravel()
        names = np.maximum.reduceat(cosines, bounds)[::2] if len(at) else cosines[:0]
        numbers = self._numbers[at].tolist()
        near = zip(names.tolist(), cosines[texts].tolist(), strict=True)
        return dict(zip(numbers, near, strict=True))


def _best(values: Floats, limit: int) -> list[int]:
    """Return the positions of the largest values, in no order."""
    if len(values) <= limit:
        return list(range(len(values)))
    return [int(at) for at in np.argpartition(values, -limit)[-limit:]]
