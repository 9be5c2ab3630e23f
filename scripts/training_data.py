"""Question and answer pairs from JSON lines, checked line by line."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class DataError(ValueError):
    """The data cannot be used; the text names the file, the line and what is expected."""


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


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank.

    Raises:
        DataError: a line is not a JSON object; names the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path.name}, line {number}: {not_utf8(error)}") from None
            except ValueError as error:
                raise DataError(f"{path.name}, line {number}: not JSON ({error})") from None
            if not isinstance(item, dict):
                raise DataError(f"{path.name}, line {number}: a JSON object is expected")
            yield number, item


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 text ({error.reason}): save it in that encoding"


def load_pairs(
    data: Path, specialty: str, *, keep: Callable[[Pair], bool] = lambda pair: True
) -> DataSet:
    """The pairs of one specialty, by split.

    Args:
        data: a `.jsonl` file, or a folder that has `<specialty>.jsonl`.
        keep: which training pairs to use; validation is never filtered.

    Raises:
        DataError: no such file (lists what there is), a malformed line, an empty question or
            answer, an unknown split, an id given twice, no training pair.
    """
    path = _file_of(data, specialty)
    splits: dict[str, list[Pair]] = {"train": [], "validation": []}
    first: dict[str, int] = {}  # id -> line
    for number, item in read_jsonl(path):
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
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return DataSet(train, tuple(splits["validation"]), {path.name: digest})


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
    for field in ("input", "output"):
        if not isinstance(item.get(field), str):
            columns = ", ".join(sorted(item))
            raise DataError(
                f"{where}: '{field}' must be a text (columns found: {columns}); "
                "expected are input and output"
            )
        if not item[field].strip():
            raise DataError(f"{where}: '{field}' is empty")
    return Pair(
        id=str(item.get("id", where)),
        question=item["input"].strip(),
        answer=item["output"].strip(),
        **{
            field: str(item.get(field) or "")
            for field in ("source", "note", "focus", "qtype", "url", "lang")
        },
    )
