"""The answers of base and adapter on disk: a header line, then one line a question and system.

It holds ids, our models' answers and figures, never the data's own text, and grows line by line, so
that an interrupted run continues.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.datasets.record import DataError, read_jsonl

SYSTEMS = ("base", "adapter")
# What two runs must have in common to be one evaluation. The base's answers do not depend on the
# adapter, so they may come from a run with another one.
_SAME = (
    *("schema", "specialty", "adapter_sha256", "base_model", "split", "data_files"),
    *("protocol", "dtype", "num_questions", "num_diagnostic_items"),
)


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One system's answer to one question."""

    id: str
    system: str
    answer: str
    num_tokens: int  # generated, the end-of-sequence token included
    hit_limit: bool  # generation ended without that token
    nll: float | None  # of the whole reference, nats; None for a question without one
    num_reference_tokens: int  # of the reference, the end-of-sequence token included
    time_s: float  # the batch's time over its size, on `device`
    device: str


@dataclass(frozen=True, slots=True)
class Answers:
    """An answers file."""

    header: dict[str, Any]
    rows: dict[str, dict[str, AnswerRow]]  # system -> id -> row


def start(path: Path, header: dict[str, Any]) -> set[tuple[str, str]]:
    """Begin a file, or continue one; return the (system, id) that it has already.

    Raises:
        DataError: the file is of another adapter, data or protocol.
    """
    if path.is_file():
        _drop_torn_line(path)
    if not path.is_file() or path.stat().st_size == 0:  # not even the header was whole
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return set()
    there = read_answers(path)
    if different := _different(there.header, header):
        raise DataError(
            f"{path}: it is of another run: {', '.join(different)} differ; remove it, or give "
            "another --out"
        )
    return {(system, id_) for system, rows in there.rows.items() for id_ in rows}


def base_rows(path: Path, header: dict[str, Any]) -> list[AnswerRow]:
    """Return the base's rows of another adapter's file.

    Raises:
        DataError: the file is of another base, data or protocol.
    """
    other = read_answers(path)
    different = [key for key in _different(other.header, header) if key != "adapter_sha256"]
    if different:
        raise DataError(f"{path}: its base answers do not fit: {', '.join(different)} differ")
    return list(other.rows["base"].values())


def append(path: Path, rows: Iterable[AnswerRow]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def read_answers(path: Path) -> Answers:
    """Read the whole file.

    Raises:
        DataError: no such file, a malformed line, or a row given twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; write it with --stage answers")
    lines = read_jsonl(path)
    _, header = next(lines, (0, {}))
    if header.get("schema") != 1:
        raise DataError(f"{path.name}, line 1: not the header of an answers file")
    rows: dict[str, dict[str, AnswerRow]] = {system: {} for system in SYSTEMS}
    for number, item in lines:
        try:
            row = AnswerRow(**item)
        except TypeError as error:
            raise DataError(f"{path.name}, line {number}: {error}") from None
        if row.system not in rows or row.id in rows[row.system]:
            raise DataError(f"{path.name}, line {number}: {row.system} {row.id}: unknown or twice")
        rows[row.system][row.id] = row
    return Answers(header, rows)


def _drop_torn_line(path: Path) -> None:
    """Drop the half line that a run leaves when it is killed; it is generated again."""
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def _different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in _SAME if one.get(key) != other.get(key)]
