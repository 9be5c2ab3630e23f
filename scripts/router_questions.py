"""The questions that a router is evaluated on, and the baselines that learn beside it.

Scored are the questions (kind "question") of the splits validation and held_out of a folder of
prepare_router_dataset, and our own development and test sets. A question that also stands in the
training texts, whatever its case, accents and punctuation, is left out and counted.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router.examples import OUT_OF_SCOPE
from router.features import words_of
from scripts.prepare_router_dataset import MANIFEST, QUESTIONS
from scripts.training_data import DataError, read_jsonl

TRAINING = ("encoder", "head")
SCORED = ("validation", "held_out")
FOLLOW_UP = "follow_up"
OURS = ("written", "glossary")  # sources that we wrote
# What a baseline learns from -> its name in the report.
PUBLIC, ALL_TEXTS = "baseline", "baseline, all texts"
_FIELDS = ("id", "input", "specialty", "lang", "source", "split", "kind")


@dataclass(frozen=True, slots=True)
class Item:
    """A labelled text. `kind` is of the data folder (question, term, passage) or of our own sets
    (plain, vignette, far, near_miss, follow_up)."""

    id: str
    text: str
    specialty: str
    lang: str
    source: str
    split: str
    kind: str

    @property
    def is_inside(self) -> bool:
        return self.specialty != OUT_OF_SCOPE


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of prepare_router_dataset. `left_out` counts copies of training texts by split."""

    training: tuple[Item, ...]
    scored: dict[str, tuple[Item, ...]]
    left_out: dict[str, int]
    folded: frozenset[str]  # the training texts, for `without_copies`
    sha256: str
    hold_out: tuple[str, ...]
    unseen_names: bool


def read_folder(folder: Path) -> Folder:
    """
    Raises:
        DataError: not a folder of prepare_router_dataset, or a line is malformed.
    """
    for name in (QUESTIONS, MANIFEST):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: no {name} in it; prepare_router_dataset writes it")
    rows = [_item(row, number) for number, row in read_jsonl(folder / QUESTIONS)]
    training = tuple(row for row in rows if row.split in TRAINING)
    folded = frozenset(fold(row.text) for row in training)
    scored, left_out = {}, {}
    for split in SCORED:
        questions = [row for row in rows if row.split == split and row.kind == "question"]
        scored[split], left_out[split] = without_copies(questions, folded)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return Folder(
        training=training,
        scored=scored,
        left_out=left_out,
        folded=folded,
        sha256=str(manifest["sha256"]),
        hold_out=tuple(manifest["hold_out"]),
        unseen_names=bool(manifest["unseen_names"]),
    )


def _item(row: dict[str, Any], number: int) -> Item:
    missing = [name for name in _FIELDS if not isinstance(row.get(name), str)]
    if missing:
        raise DataError(f"{QUESTIONS}, line {number}: {', '.join(missing)} must be texts")
    if row["split"] not in (*TRAINING, *SCORED):
        raise DataError(
            f"{QUESTIONS}, line {number}: split {row['split']!r}; expected one of "
            f"{', '.join((*TRAINING, *SCORED))}"
        )
    id_, text, specialty, lang, source, split, kind = (row[name] for name in _FIELDS)
    return Item(id_, text, specialty, lang, source, split, kind)


def read_written(path: Path) -> list[Item]:
    """One of our own sets; an id is the file's name and the line.

    Raises:
        DataError: no such file, or a line is malformed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    found = []
    for number, row in read_jsonl(path):
        missing = [name for name in ("input", "specialty", "lang", "kind") if not row.get(name)]
        if missing:
            raise DataError(f"{path.name}, line {number}: no {', '.join(missing)}")
        id_ = f"{path.stem}-{number}"
        found.append(
            Item(id_, row["input"], row["specialty"], row["lang"], path.stem, "", row["kind"])
        )
    return found


def fold(text: str) -> str:
    """Without case, accents and punctuation, so that a copy is found behind them."""
    return " ".join(word.normal for word in words_of(text))


def without_copies(
    questions: Iterable[Item], folded: frozenset[str]
) -> tuple[tuple[Item, ...], int]:
    """(questions that are in no training text word for word, how many were left out)."""
    given = list(questions)
    kept = tuple(item for item in given if fold(item.text) not in folded)
    return kept, len(given) - len(kept)


def check_labels(items: Iterable[Item], specialties: Sequence[str], where: str) -> None:
    """
    Raises:
        DataError: a question has a label that the artefact does not know.
    """
    known = {*specialties, OUT_OF_SCOPE}
    unknown = Counter(item.specialty for item in items if item.specialty not in known)
    if unknown:
        raise DataError(
            f"{where}: labels that the artefact does not know: {', '.join(sorted(unknown))}; add "
            "them to it (scripts.add_specialty), or leave these questions out"
        )


def training_of(name: str, training: Sequence[Item]) -> list[Item]:
    """What a baseline is fitted on: in-scope texts, of public questions alone or of everything."""
    inside = [item for item in training if item.is_inside]
    if name == ALL_TEXTS:
        return inside
    return [item for item in inside if item.kind == "question" and item.source not in OURS]


class Baseline:
    """Word TF-IDF + logistic regression (scikit-learn, sublinear term frequency)."""

    def __init__(self, name: str, training: Sequence[Item]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self.name = name
        fitted_on = training_of(name, training)
        self.num_texts = len(fitted_on)
        labels = [item.specialty for item in fitted_on]
        if len(set(labels)) < 2:
            raise DataError(f"{name}: fewer than two specialties to learn in the training split")
        self._model = make_pipeline(
            TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000)
        )
        self._model.fit([item.text for item in fitted_on], labels)

    def predict(self, items: Sequence[Item]) -> npt.NDArray[np.str_]:
        """(Q,) labels."""
        if not items:
            return np.array([], dtype=np.str_)
        return np.asarray(self._model.predict([item.text for item in items]), dtype=np.str_)
