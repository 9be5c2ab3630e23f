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

_ITEM = re.compile(r"^(?P<indent> *)- ", re.MULTILINE)
# Comments and blank lines at an entry's end, which are about what follows.
_TAIL = re.compile(r"(?:^[ \t]*(?:#.*)?\n)*\Z", re.MULTILINE)
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
    items = list(_ITEM.finditer(text, section.end(), end))
    indent = items[0]["indent"] if items else "  "
    starts = [item.start() for item in items if item["indent"] == indent]
    for start, stop in zip(starts, [*starts, end][1:], strict=True):
        block = text[start:stop]
        if yaml.safe_load(block)[0].get("name") == entry.name:
            after = _TAIL.search(block)
            kept = after[0] if after else ""
            return text[:start] + _block(entry, indent) + kept + text[stop:]
    body = text[:end].rstrip("\n") + "\n"
    return body + _block(entry, indent) + text[end:]


def _end_of_section(text: str, start: int) -> int:
    following = re.compile(r"^[^\s#-]", re.MULTILINE).search(text, start)
    return following.start() if following else len(text)


def _block(entry: AdapterEntry, indent: str = "  ") -> str:
    """The entry as YAML; the evaluation's intervals on one line each."""
    content = entry.model_dump(exclude_defaults=True) | {"state": entry.state}
    content.setdefault("languages", entry.languages)
    evaluation = content.pop("evaluation", {})
    lines = [f"{key}: {_scalar(value)}" for key, value in content.items()]
    if evaluation:
        lines += ["evaluation:", *[f"  {k}: {_scalar(v)}" for k, v in evaluation.items()]]
    return f"{indent}- " + f"\n{indent}  ".join(lines) + "\n"


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
