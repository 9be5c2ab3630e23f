"""Passages out of JSON lines: one object a line, its columns named by a mapping."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from references.ingest.fields import FIELDS, passage_from, utf8
from references.passage import Passage, ReferencesError


def read_json_lines(
    path: Path, columns: Mapping[str, str], defaults: Mapping[str, Any]
) -> Iterator[Passage]:
    """Yield a passage for each line.

    Args:
        columns: field of a passage -> column of the file; a field without one has its own name.
        defaults: fields of every passage whose line does not give them.

    Raises:
        ReferencesError: the mapping names an unknown field or a column that a line lacks, a line
            is not a JSON object, or the file is not UTF-8.
    """
    if unknown := sorted(columns.keys() - FIELDS):
        raise ReferencesError(
            f"columns: no field is called {', '.join(unknown)}: they are "
            f"{', '.join(sorted(FIELDS))}"
        )
    for number, line in enumerate(utf8(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ReferencesError(f"{place}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ReferencesError(f"{place}: a JSON object is expected")
        if missing := sorted(set(columns.values()) - row.keys()):
            raise ReferencesError(
                f"{place}: it has no {', '.join(missing)}: its columns are {', '.join(row)}"
            )
        found = {
            name: row[columns.get(name, name)] for name in FIELDS if columns.get(name, name) in row
        }
        yield passage_from({**defaults, **found}, place)
