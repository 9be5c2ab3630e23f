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
        self._vectors = np.divide(vectors, norms, out=vectors, where=norms > 0)
        self._place = {int(number): at for at, number in enumerate(self._numbers)}

    def all(self, vector: Floats) -> dict[int, Nearness]:
        names, texts = self._cosines(vector)
        pairs = zip(names.tolist(), texts.tolist(), strict=True)
        return dict(zip(self._numbers.tolist(), pairs, strict=True))

    def nearest(self, vector: Floats, among: Iterable[int], limit: int) -> dict[int, Nearness]:
        """Return the nearness of the `limit` nearest by name, as many by text, and of `among`."""
        names, texts = self._cosines(vector)
        places = {self._place[number] for number in among if number in self._place}
        for values in (names, texts):
            best = np.argpartition(-values, limit)[:limit] if len(values) > limit else ...
            places |= set(np.arange(len(values))[best].tolist())
        return {int(self._numbers[at]): (float(names[at]), float(texts[at])) for at in places}

    def _cosines(self, vector: Floats) -> tuple[Floats, Floats]:
        if not len(self._numbers):
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        cosines = self._vectors @ vector
        texts = cosines[self._texts].copy()
        cosines[self._texts] = -1
        return np.maximum.reduceat(cosines, self._starts), texts
