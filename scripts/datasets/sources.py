"""The kinds of sources that `prepare_medical_dataset` reads: which there are, and JSON lines."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scripts.datasets.medical_corpora import abstracts, medquad
from scripts.datasets.record import DataError, Record, text_of
from scripts.datasets.rows import read_rows
from scripts.datasets.source import Source, SourceReading, record_of
from scripts.datasets.tables import COLUMNS, hub, table


def read_source(source: Source) -> tuple[list[Record], SourceReading]:
    """Return all records of a source.

    Raises:
        DataError: names the file and line, what was found and what is expected.
    """
    reading = SourceReading()
    if source.kind != "hf" and not source.folder.exists():
        raise DataError(f"--source {source.kind}:{source.path}: no such file or folder")
    records = list(READERS[source.kind](source, reading))
    if not records:
        left = ", ".join(f"{n} {why}" for why, n in reading.left_out.items()) or "nothing in it"
        raise DataError(f"--source {source.kind}:{source.path}: no usable question ({left})")
    return records, reading


def _jsonl(source: Source, reading: SourceReading) -> Iterator[Record]:
    """Read pairs from `<specialty>.jsonl`, questions for the router from a folder's other files."""
    folder = source.folder.is_dir()
    files = sorted(source.folder.glob("*.jsonl")) if folder else [source.folder]
    for path in files:
        reading.add_file(path)
        items = list(read_rows(path))
        of_pairs = folder and any(item.get("specialty") == path.stem for _, item in items)
        for number, item in items:
            where = f"{path.name}, line {number}"
            specialty = source.options.get("all") or _specialty_of(item, where)
            if of_pairs and specialty != path.stem:
                raise DataError(
                    f"{where}: specialty '{specialty}' in the file of {path.stem}: put it into "
                    f"{specialty}.jsonl, or give the file alone: jsonl:{path.name}"
                )
            yield record_of(item, where, specialty, path.stem if folder else specialty)


def _specialty_of(item: Mapping[str, Any], where: str) -> str:
    if item.get("specialty") is None:
        raise DataError(
            f"{where}: no specialty: give one for all lines without it with all=SPECIALTY behind "
            "the path, such as jsonl:DATA.json,all=dermatology"
        )
    return text_of(item, "specialty", where)


READERS: dict[str, Callable[[Source, SourceReading], Iterator[Record]]] = {
    "jsonl": _jsonl,
    "medquad": medquad,
    "abstracts": abstracts,
    "table": table,
    "hf": hub,
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "jsonl": ("licence", "all"),
    "medquad": ("licence",),
    "abstracts": ("licence", "keyword", "keywords", "title", "abstract", "all"),
    "table": ("licence", *COLUMNS, "all"),
    "hf": ("licence", *COLUMNS, "all", "part"),
}
