"""Question and answer pairs of a specialty as training and evaluation read them, line by line."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.bases.models import sha256_of
from scripts.datasets.record import DataError, Record
from scripts.datasets.rows import read_rows
from scripts.datasets.source import record_of


@dataclass(frozen=True, slots=True)
class DataSet:
    train: tuple[Record, ...]
    validation: tuple[Record, ...]
    files: dict[str, str]  # file name -> sha256


def load_pairs(
    data: Path, specialty: str, *, keep: Callable[[Record], bool] = lambda pair: True
) -> DataSet:
    """Return the pairs of one specialty, by split.

    Args:
        data: a `.jsonl` file, a `.json` file with one list, or a folder that has
            `<specialty>.jsonl`. Rows without a split are for training.
        keep: which training pairs to use; validation is never filtered.

    Raises:
        DataError: no such file (lists what there is), a malformed line, an empty question or
            answer, an unknown split, an id given twice, no training pair.
    """
    path = _file_of(data, specialty)
    splits: dict[str, list[Record]] = {"train": [], "validation": []}
    first: dict[str, int] = {}  # id -> line
    for number, item in read_rows(path):
        if item.get("specialty", specialty) != specialty:
            continue
        where = f"{path.name}, line {number}"
        pair = record_of(item, where, specialty, specialty)
        if (before := first.setdefault(pair.id, number)) != number:
            raise DataError(f"{where}: the id '{pair.id}' is also that of line {before}")
        stripped = replace(pair, question=pair.question.strip(), answer=pair.answer.strip())
        splits[pair.split or "train"].append(stripped)
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
