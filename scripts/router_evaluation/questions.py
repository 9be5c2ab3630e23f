"""The questions that a router is evaluated on.

They are the questions (kind "question") of the splits validation and held_out of a folder written
by prepare_router_dataset, and our own development and test sets. A question that is also in the
training texts, up to case, accents and punctuation, is left out and counted.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.artefact import MANIFEST as ARTEFACT_MANIFEST
from router.text import words_of
from router.training.examples import OUT_OF_SCOPE
from scripts.datasets.record import DataError, read_jsonl
from scripts.router.dataset import MANIFEST, Entry, read_entries

TRAINING = ("encoder", "head")
SCORED = ("validation", "held_out")
FOLLOW_UP = "follow_up"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The content of a folder written by prepare_router_dataset."""

    training: tuple[Entry, ...]
    scored: dict[str, tuple[Entry, ...]]  # split -> its questions
    left_out: dict[str, int]  # split -> how many copies of training texts it had
    folded: frozenset[str]  # the training texts, folded for `without_copies`
    sha256: str
    hold_out: tuple[str, ...]
    unseen_names: bool
    origin: str  # how the artefact and these data belong together, for the report


def read_folder(folder: Path, model: Path) -> DataFolder:
    """Read a folder written by prepare_router_dataset, on which the artefact `model` was trained.

    Raises:
        DataError: a file is missing, a line is malformed, or the artefact was trained on other
            data, which may hold the scored questions.
    """
    rows = list(read_entries(folder))
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder}: no {MANIFEST} in it; prepare_router_dataset writes it")
    training = tuple(row for row in rows if row.split in TRAINING)
    folded = frozenset(fold(row.text) for row in training)
    scored, left_out = {}, {}
    for split in SCORED:
        questions = [row for row in rows if row.split == split and row.kind == "question"]
        scored[split], left_out[split] = without_copies(questions, folded)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return DataFolder(
        training=training,
        scored=scored,
        left_out=left_out,
        folded=folded,
        sha256=str(manifest["sha256"]),
        hold_out=tuple(manifest["hold_out"]),
        unseen_names=bool(manifest["unseen_names"]),
        origin=_origin(model, str(manifest["sha256"]), folder),
    )


def read_written(path: Path) -> list[Entry]:
    """Read one of our own sets; a question's id is the file's name and its line number.

    Raises:
        DataError: the file is missing, or a line is malformed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    found, name = [], path.name.partition(".")[0]
    for number, row in read_jsonl(path):
        missing = [key for key in ("input", "specialty", "lang", "kind") if not row.get(key)]
        if missing:
            raise DataError(f"{path.name}, line {number}: no {', '.join(missing)}")
        about = {key: row[key] for key in ("specialty", "lang", "kind")}
        id_ = f"{name}-{number}"
        found.append(Entry(id_, row["input"], source=name, group="", **about))
    return found


def fold(text: str) -> str:
    """Return the text without case, accents and punctuation: copies fold to the same string."""
    return " ".join(word.normal for word in words_of(text))


def without_copies(
    questions: Sequence[Entry], folded: frozenset[str]
) -> tuple[tuple[Entry, ...], int]:
    """Return the questions that fold to none of the training texts, and the number of others."""
    kept = tuple(question for question in questions if fold(question.text) not in folded)
    return kept, len(questions) - len(kept)


def check_labels(questions: Iterable[Entry], specialties: Sequence[str], where: str) -> None:
    """Check that the artefact knows each question's label.

    Raises:
        DataError: names the unknown labels.
    """
    known = {*specialties, OUT_OF_SCOPE}
    unknown = Counter(q.specialty for q in questions if q.specialty not in known)
    if unknown:
        raise DataError(
            f"{where}: labels that the artefact does not know: {', '.join(sorted(unknown))}; add "
            "them to it (scripts.add_specialty), or leave these questions out"
        )


def _origin(model: Path, sha256: str, folder: Path) -> str:
    manifest: dict[str, Any] = json.loads((model / ARTEFACT_MANIFEST).read_text(encoding="utf-8"))
    trained_on = (manifest.get("data") or {}).get("sha256")
    if trained_on is None:
        return "the artefact does not say which data it was trained on"
    if trained_on != sha256:
        raise DataError(
            f"--data {folder}: its questions have sha256 {sha256[:12]}, and the artefact "
            f"{model} was trained on {trained_on[:12]}: name the folder that train_router read"
        )
    return "the artefact was trained on this folder"
