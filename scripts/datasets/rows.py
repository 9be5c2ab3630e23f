"""Rows of JSON files with `input` and `output`, or with a pair in another common form."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.datasets.record import DataError, not_utf8, read_jsonl

_ROLES = {
    **{"system": "system", "developer": "system", "user": "user", "human": "user"},
    **{"assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"},
}
# Names of a question's and an answer's column, in small letters.
_COLUMNS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("query", "response"),
)


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

    Alpaca's `instruction` goes before its `input`, Dolly's before its `context`. Of chat `messages`
    or ShareGPT's `conversations` one user turn and the assistant's answer to it are taken, behind
    an optional system turn. Columns that name a question and an answer otherwise stay beside their
    copies, since a table's options may name them. Any other row is returned unchanged; reading a
    column that it lacks refuses it.
    """
    instruction = row.get("instruction")
    if isinstance(instruction, str) and "output" in row:
        pair = {"input": _joined(instruction, row.get("input"))}
        return {k: v for k, v in row.items() if k != "instruction"} | pair
    for name in ("messages", "conversations"):
        if pair := _pair_of_turns(row.get(name)):
            return {k: v for k, v in row.items() if k != name} | pair
    return dict(row) | ({} if {"input", "output"} & row.keys() else _pair_of_columns(row))


def _joined(*parts: Any) -> str:
    return "\n\n".join(part for part in map(str, filter(None, parts)) if part.strip())


def _pair_of_turns(turns: Any) -> dict[str, Any]:
    """Return the pair of a conversation; empty where it is none of one question and answer."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return {}
    roles = [_ROLES.get(turn.get("role", turn.get("from")), "") for turn in turns]
    if [role for role in roles if role != "system"] != ["user", "assistant"]:
        return {}
    texts = dict(zip(roles, (_text(t.get("content", t.get("value"))) for t in turns), strict=True))
    return {"input": texts["user"], "output": texts["assistant"]}


def _text(content: Any) -> Any:
    """Return a turn's text; of a list of text parts, the parts in lines."""
    is_parts = isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    )
    return "\n".join(part["text"] for part in content) if is_parts else content


def _pair_of_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {name.lower(): value for name, value in row.items()}
    for question, answer in _COLUMNS:
        if question in by_name and answer in by_name:
            asked = by_name[question]
            if question == "instruction":
                asked = _joined(asked, by_name.get("context"))
            return {"input": asked, "output": by_name[answer]}
    return {}
