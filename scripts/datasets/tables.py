"""Read tables and data sets of the hub whose columns the source's options name."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts.datasets.record import DataError, Record, not_utf8
from scripts.datasets.rows import read_rows, with_pair_columns
from scripts.datasets.source import Source, SourceReading, record_of

COLUMNS = ("question", "answer", "specialty", "id", "focus", "source", "url", "lang", "split")


def table(source: Source, reading: SourceReading) -> Iterator[Record]:
    """Read any CSV, TSV, JSON or JSONL file with the columns that the options name."""
    for number, row in read_table(source.folder, reading):
        yield _mapped(source, row, f"{source.folder.name}, line {number}")


def hub(source: Source, reading: SourceReading) -> Iterator[Record]:
    """Read a dataset of the Hugging Face hub."""
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
        yield _mapped(source, with_pair_columns(row), f"{source.path}, row {number}")


def _mapped(source: Source, row: Mapping[str, Any], where: str) -> Record:
    column = {name: source.options.get(name, name) for name in COLUMNS}
    for name, other in (("question", "input"), ("answer", "output")):
        if name not in source.options and name not in row and other in row:
            column[name] = other
    renamed = {name: row[column[name]] for name in COLUMNS if column[name] in row}
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
    return record_of(renamed, where, specialty, specialty)


def read_table(path: Path, reading: SourceReading) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, row) of a table file, by its ending.

    Raises:
        DataError: another ending, or a file that cannot be read so.
    """
    reading.add_file(path)
    if path.suffix in (".json", ".jsonl"):
        yield from read_rows(path)
    elif path.suffix in (".csv", ".tsv"):
        yield from _csv_rows(path)
    else:
        raise DataError(f"{path.name}: expected a file ending in .csv, .tsv, .json or .jsonl")


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")  # Excel writes a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name}, line {line}: {not_utf8(error)}") from None
    dialect = "excel" if path.suffix == ".csv" else "excel-tab"
    reader = csv.DictReader(io.StringIO(text, newline=""), dialect=dialect)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path.name}, line {reader.line_num}: {len(reader.fieldnames or [])} "
                    "columns are expected, as in its first line"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path.name}, after line {reader.line_num}: {error}") from None
