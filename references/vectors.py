"""Vectors of names as a shelf keeps them: one byte a number, one row for each name of a passage."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from references.embedding import Floats


def packed(vectors: Floats, lengths: Sequence[int]) -> Iterator[bytes]:
    """Yield the bytes of each passage's vectors; `lengths` says how many names each has.

    Only a vector's direction is kept: it is stretched until its largest number is 127.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    stretched = np.divide(127 * vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    rounded = np.round(stretched).astype(np.int8)
    start = 0
    for length in lengths:
        yield rounded[start : start + length].tobytes()
        start += length


class NameVectors:
    """The vectors of some passages, in memory.

    Args:
        rows: number of a passage, how many names it has, and their packed vectors.
    """

    def __init__(self, rows: Iterable[tuple[int, int, bytes]]) -> None:
        found = list(rows)
        self._numbers = np.array([number for number, _, _ in found], np.int64)
        lengths = np.array([length for _, length, _ in found], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        total = int(lengths.sum())
        data = np.frombuffer(b"".join(data for _, _, data in found), np.int8)
        vectors = data.reshape(total, -1 if total else 0).astype(np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        self._vectors = np.divide(vectors, norms, out=vectors, where=norms > 0)
        self._place = {int(number): at for at, number in enumerate(self._numbers)}

    def _all(self, vector: Floats) -> Floats:
        """Return the cosine of each passage's nearest name."""
        if not len(self._numbers):
            return np.zeros(0, np.float32)
        return np.asarray(np.maximum.reduceat(self._vectors @ vector, self._starts))

    def cosines(self, vector: Floats) -> dict[int, float]:
        values = self._all(vector).tolist()
        return dict(zip(self._numbers.tolist(), values, strict=True))

    def nearest(self, vector: Floats, among: Iterable[int], limit: int) -> dict[int, float]:
        """Return the cosines of the `limit` nearest passages, and of those in `among`."""
        values = self._all(vector)
        best = np.argsort(-values)[:limit] if len(values) <= limit else (
            np.argpartition(-values, limit)[:limit]
        )
        found = {int(self._numbers[at]): float(values[at]) for at in best}
        places = {number: self._place[number] for number in among if number in self._place}
        return found | {number: float(values[at]) for number, at in places.items()}
