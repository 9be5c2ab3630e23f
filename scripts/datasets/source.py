"""A `--source` argument, what its reader counted, and one row as a record."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.datasets.record import DataError, Record, language, text_of

_OPTION = re.compile(r",([a-z]+)=")
_SPECIALTY = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")  # as adapters/catalog.yaml wants it
_KNOWN = frozenset("id input output specialty source lang split focus qtype url note".split())


@dataclass(frozen=True, slots=True)
class Source:
    """`KIND:PATH[,key=value...]` as given. `path` is a dataset's id for kind `hf`."""

    kind: str
    path: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.path)

    def title(self) -> str:
        return f"{self.kind}:{self.path if self.kind == 'hf' else self.folder.name}"


def parse_source(text: str, allowed: Mapping[str, Collection[str]]) -> Source:
    """Read `KIND:PATH[,key=value...]`; `allowed` has the options of each kind.

    Raises:
        DataError: another kind, an empty path, or an option that the kind does not have.
    """
    kind, _, rest = text.partition(":")
    path, *pieces = _OPTION.split(rest)
    if kind not in allowed or not path:
        raise DataError(
            f"--source {text}: expected KIND:PATH with KIND one of {', '.join(allowed)}"
        )
    options = dict(zip(pieces[::2], pieces[1::2], strict=True))
    if unknown := sorted(options.keys() - set(allowed[kind])):
        raise DataError(
            f"--source {text}: no option {', '.join(unknown)} for kind {kind}; there are "
            f"{', '.join(sorted(allowed[kind])) or 'none'}"
        )
    return Source(kind, path, options)


@dataclass(slots=True)
class SourceReading:
    """What a reader counted."""

    left_out: Counter[str] = field(default_factory=Counter)  # why -> how many rows
    files: dict[str, str] = field(default_factory=dict)  # name -> sha256

    def add_file(self, *paths: Path, name: str = "") -> None:
        """Record the sha256 of the files' joined content under `name`, by default the first's."""
        digest = hashlib.sha256()
        for path in paths:
            digest.update(path.read_bytes())
        self.files[name or paths[0].name] = digest.hexdigest()


def checked_specialty(specialty: str, where: str) -> str:
    """Return the name of a specialty. Raises DataError: no file can have it."""
    if not _SPECIALTY.fullmatch(specialty):
        raise DataError(
            f"{where}: specialty {specialty!r}; use 1 to 64 of a-z, 0-9, '_', starting with a "
            "letter or digit: it becomes a file's name"
        )
    return specialty


def record_of(item: Mapping[str, Any], where: str, specialty: str, file: str) -> Record:
    """Return a row with the columns `input` and `output` as a record of `file`.

    Raises:
        DataError: a name that no file can have, a missing text, or an unknown split.
    """
    checked_specialty(specialty, where)
    answer = item.get("output")
    if file == specialty:
        answer = text_of(item, "output", where)
    split = str(item.get("split") or "")
    if split not in ("", "train", "validation"):
        raise DataError(
            f"{where}: split {split!r}; expected train or validation (a test set stays out)"
        )
    question = text_of(item, "input", where)
    texts: dict[str, Any] = {
        key: str(item.get(key) or "") for key in ("focus", "qtype", "url", "note")
    }
    return Record(
        id=str(item.get("id") or where),
        question=question,
        answer=str(answer or ""),
        specialty=specialty,
        file=file,
        source=str(item.get("source") or file),
        lang=str(item.get("lang") or language(f"{question} {answer or ''}")),
        split=split,
        where=where,
        **texts,
        extra={k: v for k, v in item.items() if k not in _KNOWN},
    )
