"""Readers of the sources that `prepare_medical_dataset` knows: each yields records."""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scripts.datasets.record import DataError, Record, not_utf8, read_jsonl
from scripts.datasets.specialties import labelled, specialty_of

MAX_ANSWER_CHARS = 1500  # of an abstract; MedQuAD's median answer is 700
MAX_TITLE_WORDS = 30
_SPECIALTY = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")  # as adapters/catalog.yaml wants it
_OPTION = re.compile(r",([a-z]+)=")
_KNOWN = frozenset("id input output specialty source lang split focus qtype url note".split())
_COLUMNS = ("question", "answer", "specialty", "id", "focus", "source", "url", "lang", "split")


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


@dataclass(slots=True)
class Reading:
    """What a reader found besides records."""

    left_out: Counter[str] = field(default_factory=Counter)  # why -> how many
    files: dict[str, str] = field(default_factory=dict)  # name -> sha256


def parse_source(text: str) -> Source:
    """Read a `--source` argument.

    Raises:
        DataError: unknown kind or option, empty path.
    """
    kind, _, rest = text.partition(":")
    if kind not in READERS or not rest:
        raise DataError(
            f"--source {text}: expected KIND:PATH with KIND one of {', '.join(READERS)}"
        )
    pieces = _OPTION.split(rest)
    options = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    known = ALLOWED[kind] | {"licence"}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise DataError(
            f"--source {text}: no option {', '.join(unknown)} for kind {kind}; there are "
            f"{', '.join(sorted(known))}"
        )
    return Source(kind, pieces[0], options)


def read_source(source: Source) -> tuple[list[Record], Reading]:
    """All records of a source.

    Raises:
        DataError: names the file and line, what was found and what is expected.
    """
    reading = Reading()
    if source.kind != "hf" and not source.folder.exists():
        raise DataError(f"--source {source.kind}:{source.path}: no such file or folder")
    records = list(READERS[source.kind](source, reading))
    if not records:
        left = ", ".join(f"{n} {why}" for why, n in reading.left_out.items()) or "nothing in it"
        raise DataError(f"--source {source.kind}:{source.path}: no usable question ({left})")
    return records, reading


def _jsonl(source: Source, reading: Reading) -> Iterator[Record]:
    """`<specialty>.jsonl` files hold pairs; a folder's other files, questions for the router."""
    folder = source.folder.is_dir()
    files = sorted(source.folder.glob("*.jsonl")) if folder else [source.folder]
    for path in files:
        reading.files[path.name] = _sha256(path)
        items = list(read_jsonl(path))
        of_pairs = folder and any(item.get("specialty") == path.stem for _, item in items)
        for number, item in items:
            where = f"{path.name}, line {number}"
            specialty = _text(item, "specialty", where)
            if of_pairs and specialty != path.stem:
                raise DataError(
                    f"{where}: specialty '{specialty}' in the file of {path.stem}: put it into "
                    f"{specialty}.jsonl, or give the file alone: jsonl:{path.name}"
                )
            yield _record(item, where, specialty, path.stem if folder else specialty)


def _record(item: Mapping[str, Any], where: str, specialty: str, file: str) -> Record:
    if not _SPECIALTY.fullmatch(specialty):
        raise DataError(
            f"{where}: specialty {specialty!r}; use 1 to 64 of a-z, 0-9, '_', starting with a "
            "letter or digit: it becomes a file's name"
        )
    answer = item.get("output")
    if file == specialty:
        answer = _text(item, "output", where)
    split = str(item.get("split") or "")
    if split not in ("", "train", "validation"):
        raise DataError(
            f"{where}: split {split!r}; expected train or validation (a test set stays out)"
        )
    return Record(
        id=str(item.get("id") or where),
        question=_text(item, "input", where),
        answer=str(answer or ""),
        specialty=specialty,
        file=file,
        source=str(item.get("source") or file),
        lang=str(item.get("lang") or "en"),
        split=split,
        where=where,
        focus=str(item.get("focus") or ""),
        qtype=str(item.get("qtype") or ""),
        url=str(item.get("url") or ""),
        note=str(item.get("note") or ""),
        extra={k: v for k, v in item.items() if k not in _KNOWN},
    )


def _text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: '{name}' must be a text (columns found: {', '.join(sorted(item))})"
        )
    if not value.strip():
        raise DataError(f"{where}: '{name}' is empty")
    return value


def _medquad(source: Source, reading: Reading) -> Iterator[Record]:
    """MedQuAD's XML. Its answers that were removed for copyright are empty: counted.

    Its own ids are unique within one of its folders only, so the folder's name goes before them.
    """
    paths = sorted(source.folder.rglob("*.xml"))
    reading.files[f"{len(paths)} XML files"] = _sha256(*paths)
    for path in paths:
        try:
            document = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise DataError(f"{path.parent.name}/{path.name}: not XML ({error})") from None
        focus = (document.findtext("Focus") or "").strip()
        synonyms = [s.text.strip() for s in document.iter("Synonym") if s.text and s.text.strip()]
        specialty = specialty_of(focus, " ".join(synonyms))
        pairs = list(document.iter("QAPair"))
        if specialty is None:
            reading.left_out["no single specialty"] += len(pairs)
            continue
        for pair in pairs:
            question, answer = pair.find("Question"), _in_one_line(pair.findtext("Answer"))
            where = f"{path.parent.name}/{path.name}, pair {pair.get('pid')}"
            if question is None or not _in_one_line(question.text):
                raise DataError(f"{where}: it has no question")
            if not answer:
                reading.left_out["empty answer"] += 1
                continue
            yield Record(
                id=f"{path.parent.name}/{question.get('qid') or path.stem}",
                question=_in_one_line(question.text).replace(" ?", "?"),
                answer=answer,
                specialty=specialty,
                file=specialty,
                source=f"MedQuAD/{document.get('source') or path.parent.name}",
                lang="en",
                split="",
                where=where,
                focus=focus,
                synonyms=tuple(synonyms),
                cuis=tuple(sorted({c.text.strip() for c in document.iter("CUI") if c.text})),
                qtype=question.get("qtype") or "",
                url=document.get("url") or "",
            )


def _in_one_line(text: str | None) -> str:
    """Without the indentation of the XML file."""
    return " ".join((text or "").split())


def _abstracts(source: Source, reading: Reading) -> Iterator[Record]:
    """Medical Abstracts: the title, which is the first sentence, becomes the question."""
    for number, row in _rows(source.folder, reading):
        where = f"{source.folder.name}, line {number}"
        for column in ("condition_label", "medical_abstract"):
            if not row.get(column):
                raise DataError(
                    f"{where}: no '{column}' (columns found: {', '.join(map(str, row))})"
                )
        allowed = labelled(row["condition_label"].strip())
        if allowed is None:
            raise DataError(f"{where}: condition_label {row['condition_label']!r}; expected 1 to 5")
        title, _, body = row["medical_abstract"].strip().partition(". ")
        specialty = specialty_of(title, body, allowed)
        answer = _cut(body.strip())
        if specialty is None:
            reading.left_out["no single specialty"] += 1
        elif not answer or len(title.split()) > MAX_TITLE_WORDS:
            reading.left_out["no title or no text after it"] += 1
        else:
            yield Record(
                id=f"{source.folder.stem}-{number}",
                question=f"What does research say about this: {title}?",
                answer=answer,
                specialty=specialty,
                file=specialty,
                source="Medical Abstracts",
                lang="en",
                split="",
                where=where,
                focus=title,
                qtype="research",
            )


def _cut(text: str) -> str:
    """The sentences that fit into MAX_ANSWER_CHARS."""
    if len(text) <= MAX_ANSWER_CHARS:
        return text
    return text[: text.rfind(". ", 0, MAX_ANSWER_CHARS) + 1]


def _table(source: Source, reading: Reading) -> Iterator[Record]:
    """Any CSV, TSV, JSON or JSONL file with the columns that the options name."""
    for number, row in _rows(source.folder, reading):
        yield _mapped(source, row, f"{source.folder.name}, line {number}")


def _hf(source: Source, reading: Reading) -> Iterator[Record]:
    """A dataset of the Hugging Face hub."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            f"--source hf:{source.path} needs the package datasets: pip install datasets; or "
            "download the data and use the kind table"
        ) from None
    part = source.options.get("part", "train")
    try:
        rows = load_dataset(source.path, split=part)
    except Exception as error:  # its own kinds are many: network, name, licence, script
        raise DataError(
            f"--source hf:{source.path}: cannot be loaded ({type(error).__name__}: {error}); "
            "without a network, download the data elsewhere and use the kind table"
        ) from None
    reading.files[f"{source.path}[{part}]"] = str(getattr(rows, "_fingerprint", "unknown"))
    for number, row in enumerate(rows, start=1):
        yield _mapped(source, row, f"{source.path}, row {number}")


def _mapped(source: Source, row: Mapping[str, Any], where: str) -> Record:
    column = {name: source.options.get(name, name) for name in _COLUMNS}
    renamed = {name: row[column[name]] for name in _COLUMNS if column[name] in row}
    renamed |= {"input": renamed.pop("question", None), "output": renamed.pop("answer", None)}
    for name, field_name in (("question", "input"), ("answer", "output")):
        value = renamed[field_name]
        if column[name] not in row:
            raise DataError(
                f"{where}: no column '{column[name]}' (there are {', '.join(map(str, row))}); "
                f"name it: {name}=COLUMN"
            )
        if value is None or not str(value).strip():
            raise DataError(f"{where}: '{column[name]}' is empty")
        if not isinstance(value, str | int | float):
            raise DataError(
                f"{where}: '{column[name]}' holds a {type(value).__name__}; a text is expected"
            )
        renamed[field_name] = str(value)
    specialty = source.options.get("all") or str(renamed.get("specialty") or "")
    if not specialty:
        raise DataError(
            f"{where}: no specialty: name the column with specialty=COLUMN, or give one for all "
            "rows with all=SPECIALTY"
        )
    renamed.setdefault("source", Path(source.path).name)
    return _record(renamed, where, specialty, specialty)


def _rows(path: Path, reading: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a table file, by its ending."""
    reading.files[path.name] = _sha256(path)
    if path.suffix == ".jsonl":
        yield from read_jsonl(path)
    elif path.suffix == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{path.name}: {not_utf8(error)}") from None
        except ValueError as error:
            raise DataError(f"{path.name}: not JSON ({error})") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path.name}: a list of objects is expected")
        yield from enumerate(rows, start=1)
    elif path.suffix in (".csv", ".tsv"):
        yield from _csv_rows(path)
    else:
        raise DataError(f"{path.name}: expected a file ending in .csv, .tsv, .json or .jsonl")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    dialect = "excel" if path.suffix == ".csv" else "excel-tab"
    with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
        reader = csv.DictReader(file, dialect=dialect)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path.name}, line {reader.line_num}: {len(reader.fieldnames or [])} "
                        "columns are expected, as in its first line"
                    )
                yield reader.line_num, row
        except UnicodeDecodeError as error:
            where = f"{path.name}, line {_first_not_utf8(path)}"
            raise DataError(f"{where}: {not_utf8(error)}") from None
        except csv.Error as error:
            raise DataError(f"{path.name}, after line {reader.line_num}: {error}") from None


def _first_not_utf8(path: Path) -> int:
    """The text layer reads ahead, so its own line is not known."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


READERS: dict[str, Callable[[Source, Reading], Iterator[Record]]] = {
    "jsonl": _jsonl,
    "medquad": _medquad,
    "abstracts": _abstracts,
    "table": _table,
    "hf": _hf,
}
ALLOWED: dict[str, frozenset[str]] = {
    "jsonl": frozenset(),
    "medquad": frozenset(),
    "abstracts": frozenset(),
    "table": frozenset({*_COLUMNS, "all"}),
    "hf": frozenset({*_COLUMNS, "all", "part"}),
}
