"""Vectors of short texts: the means of word vectors, which the PyPI package `wordllama` carries.

WordLlama's token embeddings were trained for similarity of English sentences; the first 128 of
their 256 dimensions can be used alone (docs/references.md says what they add to the search, and
what the router's encoder would cost). Only the package's data files are read.
"""

import importlib.util
from collections.abc import Sequence
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
