"""Question and answer pairs of a specialty as training and evaluation read them, line by line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.base_models import sha256_of
from scripts.datasets.record import DataError, text_of
from scripts.datasets.rows import read_rows


@dataclass(frozen=True, slots=True)
class Pair:
    """One example. What is unknown is an empty text."""

    id: str
    question: str
    answer: str
    source: str
    note: str
    focus: str = ""  # the disease or topic
    qtype: str = ""  # MedQuAD's type of question
    url: str = ""
    lang: str = ""  # ISO 639-1


@dataclass(frozen=True, slots=True)
class DataSet:
    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    files: dict[str, str]  # file name -> sha256


def load_pairs(
    data: Path, specialty: str, *, keep: Callable[[Pair], bool] = lambda pair: True
) -> DataSet:
    """Return the pairs of one specialty, by split; rows without a split are for training.

    `data` is a `.jsonl` or `.json` file, or a folder with `<specialty>.jsonl`; `keep` filters the
    training pairs alone. Raises DataError, naming file, line and what is wrong.
    """
    path = _file_of(data, specialty)
    splits: dict[str, list[Pair]] = {"train": [], "validation": []}
    first: dict[str, int] = {}  # id -> line
    for number, item in read_rows(path):
        if item.get("specialty", specialty) != specialty:
            continue
        pair = _pair(item, f"{path.name}, line {number}")
        split = item.get("split", "train")
        if split not in splits:
            raise DataError(
                f"{path.name}, line {number}: split '{split}'; expected train or validation"
            )
        if (before := first.setdefault(pair.id, number)) != number:
            raise DataError(
                f"{path.name}, line {number}: the id '{pair.id}' is also that of line {before}"
            )
        splits[split].append(pair)
    train = tuple(pair for pair in splits["train"] if keep(pair))
    if not train:
        raise DataError(f"{path}: no training pair for specialty '{specialty}'")
    return DataSet(train, tuple(splits["validation"]), {path.name: sha256_of(path)})


def _file_of(data: Path, specialty: str) -> Path:
    if data.is_file():
        return data
    if not data.is_dir():
        raise DataError(f"--data {data}: no such file or folder")
    path = data / f"{specialty}.jsonl"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in data.glob("*.jsonl"))) or "no .jsonl file"
        raise DataError(f"--specialty {specialty}: {path} does not exist (there are: {there})")
    return path


def _pair(item: dict[str, Any], where: str) -> Pair:
    return Pair(
        id=str(item.get("id", where)),
        question=text_of(item, "input", where).strip(),
        answer=text_of(item, "output", where).strip(),
        **{
            key: str(item.get(key) or "")
            for key in ("source", "note", "focus", "qtype", "url", "lang")
        },
    )
