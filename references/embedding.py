"""Vectors of short texts: the means of word vectors, which the PyPI package `wordllama` carries;
and those of passages, as a shelf keeps them.

WordLlama's token embeddings were trained for similarity of English sentences; the first 128 of
their 256 dimensions can be used alone (docs/references.md says what they add to the search, and
what the router's encoder would cost). Only the package's data files are read.
"""

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from references.passage import ReferencesError
from references.words import ENGLISH, words

DIMENSIONS = 64
_WEIGHTS = Path("weights", "l2_supercat_256.safetensors")
_TOKENIZER = Path("tokenizers", "l2_supercat_tokenizer_config.json")
_BATCH = 4096
Floats = npt.NDArray[np.float32]


class Vectoriser(Protocol):
    """Turns texts into vectors. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """Return what tells its vectors from another's; a shelf keeps it."""

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Return (N, D) vectors of length 1, or 0 for a text without a word it knows."""


class WordVectors:
    """The default vectoriser.

    Args:
        folder: of the installed package; default: where Python finds it.

    Raises:
        ReferencesError: the package is not installed, or lacks its files.
    """

    name = f"wordllama l2_supercat {DIMENSIONS}"

    def __init__(self, folder: Path | None = None) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = folder or _installed()
        try:
            (weights,) = load_file(folder / _WEIGHTS).values()
            self._tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
        except (OSError, ValueError, SafetensorError) as error:
            raise ReferencesError(
                f"{folder} is not the package wordllama 0.4 ({error}): pip install 'wordllama<0.5'"
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._weights: Floats = weights[:, :DIMENSIONS].astype(np.float32)

    def __call__(self, texts: Sequence[str]) -> Floats:
        out = np.zeros((len(texts), DIMENSIONS), np.float32)
        for start in range(0, len(texts), _BATCH):
            batch = [content(text) for text in texts[start : start + _BATCH]]
            for at, encoded in enumerate(
                self._tokenizer.encode_batch(batch, add_special_tokens=False), start
            ):
                if encoded.ids:
                    out[at] = self._weights[encoded.ids].sum(axis=0)
        norms = np.linalg.norm(out, axis=1, keepdims=True)
        np.divide(out, norms, out=out, where=norms > 0)
        return out


def content(text: str) -> str:
    """Return the words of an English text without those that say nothing about its topic."""
    return " ".join(word for word in words(text) if word not in ENGLISH)


def _installed() -> Path:
    spec = importlib.util.find_spec("wordllama")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        return Path(folder)
    raise ReferencesError("the package wordllama is not installed: pip install 'wordllama<0.5'")


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
