"""The router's training set: its entries, and the folder that prepare_router_dataset writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.training.examples import OUT_OF_SCOPE
from scripts.datasets.record import DataError, normal_name, read_jsonl

QUESTIONS = "questions.jsonl"  # one entry a line
MANIFEST = "manifest.json"
SPLITS = ("encoder", "head", "validation", "held_out")
_FIELDS = ("id", "input", "specialty", "lang", "source", "group", "kind")


@dataclass(frozen=True, slots=True)
class Entry:
    """One text with its label."""

    id: str
    text: str
    specialty: str
    lang: str
    source: str
    group: str  # entries of one group are never in two splits (a disease, a sign, a text)
    kind: str  # "question", "term" or "passage"; in our own evaluation sets "plain", "far", ...
    names: tuple[str, ...] = ()  # normal names of what the text is about, while the set is prepared
    split: str = ""  # one of SPLITS; while preparing "train", "validation", or "" without one

    @property
    def is_inside(self) -> bool:
        return self.specialty != OUT_OF_SCOPE


def term(id_: str, text: str, specialty: str, lang: str, source: str, group: str = "") -> Entry:
    """Return the entry of a name in a terminology; its group is by default the name."""
    name = normal_name(text)
    return Entry(id_, text, specialty, lang, source, group or f"name {name}", "term", (name,))


def question(
    id_: str, text: str, specialty: str, lang: str, source: str, group: str, split: str = "train"
) -> Entry:
    return Entry(id_, text, specialty, lang, source, group, "question", split=split)


def to_row(entry: Entry) -> dict[str, str]:
    """Return the entry as a line of QUESTIONS has it."""
    names = ("id", "input", "specialty", "lang", "source", "split", "kind", "group")
    return {name: getattr(entry, "text" if name == "input" else name) for name in names}


def read_entries(folder: Path) -> Iterator[Entry]:
    """Read the entries of a folder that prepare_router_dataset wrote.

    Raises:
        DataError: there is no such folder, or a line is malformed; names the line.
    """
    path = folder / QUESTIONS
    if not path.is_file():
        raise DataError(f"{folder}: no {QUESTIONS} in it; prepare_router_dataset writes it")
    for number, row in read_jsonl(path):
        yield _entry(row, f"{QUESTIONS}, line {number}")


def _entry(row: dict[str, Any], where: str) -> Entry:
    split = row.get("split")
    if split not in SPLITS:
        raise DataError(f"{where}: split {split!r}; expected one of {', '.join(SPLITS)}")
    if missing := [name for name in _FIELDS if not isinstance(row.get(name), str)]:
        raise DataError(f"{where}: {', '.join(missing)} must be a text")
    if not row["input"].strip():
        raise DataError(f"{where}: input must be a text")
    fields = {name: row[name] for name in _FIELDS if name != "input"}
    return Entry(text=row["input"], split=split, **fields)
