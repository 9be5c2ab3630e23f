"""Rows of JSON files whose pairs are in `input` and `output`, Alpaca's columns or chat messages."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.datasets.record import DataError, not_utf8, read_jsonl


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, object) of a `.json` file with one list, else of a file of JSON lines.

    Raises:
        DataError: not such a file; names it, and the line where there are lines.
    """
    if path.suffix != ".json":
        for number, row in read_jsonl(path):
            yield number, with_pair_columns(row)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: {not_utf8(error)}") from None
    except ValueError as error:
        raise DataError(f"{path.name}: not JSON ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path.name}: a list of objects is expected")
    yield from enumerate(map(with_pair_columns, rows), start=1)


def with_pair_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with `input` and `output` where it has another common form.

    Alpaca's `instruction` goes before its `input`. Of chat `messages` one user turn and the
    assistant's answer to it are taken, behind an optional system turn. Any other row is
    returned unchanged; reading a column that it lacks refuses it.
    """
    instruction, messages = row.get("instruction"), row.get("messages")
    if isinstance(instruction, str) and "output" in row:
        parts = [instruction, str(row.get("input") or "")]
        question = "\n\n".join(part for part in parts if part.strip())
        return {k: v for k, v in row.items() if k != "instruction"} | {"input": question}
    if isinstance(messages, list) and all(isinstance(turn, dict) for turn in messages):
        turns = [turn for turn in messages if turn.get("role") != "system"]
        if [turn.get("role") for turn in turns] == ["user", "assistant"]:
            pair = {"input": turns[0].get("content"), "output": turns[1].get("content")}
            return {k: v for k, v in row.items() if k != "messages"} | pair
    return dict(row)
