"""Changes one adapter's entry in a catalog.yaml; the rest of the file stays byte for byte."""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from adapters.catalog import CATALOG_FILE, AdapterEntry, CatalogError, load_catalog

_ENTRY = re.compile(r"^  - name: *(?P<name>\S+) *$", re.MULTILINE)
_SECTION = re.compile(r"^adapters:.*$", re.MULTILINE)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other promotions out while the catalogue is read and written."""
    with (folder / f".{CATALOG_FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def put_entry(folder: Path, entry: AdapterEntry) -> None:
    """Replace the entry of this name, or add it at the end; the file is swapped in one step.

    Raises:
        CatalogError: the catalogue would no longer load; it is left as it was.
        OSError: it cannot be written; it is left as it was.
    """
    file = folder / CATALOG_FILE
    before = file.read_text(encoding="utf-8")
    _swap(file, with_entry(before, entry))
    try:
        load_catalog(folder)
    except CatalogError:
        _swap(file, before)
        raise


def with_entry(text: str, entry: AdapterEntry) -> str:
    """The catalogue's text with this entry."""
    section = _SECTION.search(text)
    if section is None or section[0].replace(" ", "") == "adapters:[]":
        head = text[: section.start()] if section else text.rstrip("\n") + "\n\n"
        tail = text[section.end() :].lstrip("\n") if section else ""
        return f"{head}adapters:\n{_block(entry)}{tail}"
    end = _end_of_section(text, section.end())
    starts = [m for m in _ENTRY.finditer(text, section.end(), end)]
    for i, match in enumerate(starts):
        if match["name"].strip("\"'") == entry.name:
            stop = starts[i + 1].start() if i + 1 < len(starts) else end
            return text[: match.start()] + _block(entry) + text[stop:]
    body = text[:end].rstrip("\n") + "\n"
    return body + _block(entry) + text[end:]


def _end_of_section(text: str, start: int) -> int:
    following = re.compile(r"^[^\s#-]", re.MULTILINE).search(text, start)
    return following.start() if following else len(text)


def _block(entry: AdapterEntry) -> str:
    """The entry as YAML; the evaluation's intervals on one line each."""
    content = entry.model_dump(exclude_defaults=True) | {"state": entry.state}
    content.setdefault("languages", entry.languages)
    evaluation = content.pop("evaluation", {})
    lines = [f"{key}: {_scalar(value)}" for key, value in content.items()]
    if evaluation:
        lines += ["evaluation:", *[f"  {k}: {_scalar(v)}" for k, v in evaluation.items()]]
    return "  - " + "\n    ".join(lines) + "\n"


def _scalar(value: Any) -> str:
    shown = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return shown.removesuffix("\n").removesuffix("\n...")


def _swap(file: Path, text: str) -> None:
    fresh = file.with_suffix(".yaml.part")
    try:
        fresh.write_text(text, encoding="utf-8")
        os.replace(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)
