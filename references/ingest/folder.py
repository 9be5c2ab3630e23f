"""Passages out of a folder of Markdown and text files, one for each section.

A file may begin with YAML between two lines of `---`: title, synonyms, source, licence, url,
specialty, language. What it does not say comes from the defaults of the whole folder.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from references.ingest.fields import ALLOWED, passage_from, utf8
from references.passage import Passage, ReferencesError

SUFFIXES = (".md", ".markdown", ".txt")
MAX_SECTION_CHARS = 4000  # a longer section is cut between paragraphs
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_HEADING = re.compile(r"^#{1,3} +(.+?) *#*$", re.MULTILINE)
_NOT_ID = re.compile(r"[^A-Za-z0-9._/-]+")


def read_folder(folder: Path, defaults: Mapping[str, Any]) -> Iterator[Passage]:
    """Yield the passages of all files below a folder, by path; hidden files are left out.

    Args:
        defaults: fields of every passage that its file does not give.

    Raises:
        ReferencesError: no such folder, no file to read, one that is not UTF-8, or front matter
            that is not YAML or has an unknown field.
    """
    if not folder.is_dir():
        raise ReferencesError(f"{folder}: there is no such folder")
    files = [path for path in _files(folder) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise ReferencesError(f"{folder}: it holds no file that ends in {', '.join(SUFFIXES)}")
    for path in files:
        yield from _passages(path, path.relative_to(folder), defaults)


def left_out(folder: Path) -> list[str]:
    """Return the files of a folder that `read_folder` does not read."""
    return [
        str(path.relative_to(folder))
        for path in _files(folder)
        if path.suffix.lower() not in SUFFIXES
    ]


def _files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _passages(path: Path, name: Path, defaults: Mapping[str, Any]) -> Iterator[Passage]:
    text = utf8(path).replace("\r\n", "\n")
    front = _front_matter(path, text)
    text = _FRONT.sub("", text, count=1)
    base = _NOT_ID.sub("-", name.with_suffix("").as_posix()).strip("-/")
    given = passage_from({**defaults, **front}, str(name))  # refuses a field of another kind
    title = given.title
    parts = [(heading, piece) for heading, body in _sections(text) for piece in _pieces(body)]
    for number, (heading, piece) in enumerate(parts, 1):
        first = title or parts[0][0] or name.stem.replace("_", " ").replace("-", " ")
        yield replace(
            given,
            id=base if len(parts) == 1 else f"{base}#{number}",
            title=first if heading in ("", first) else f"{first}: {heading}",
            text=piece,
        )


def _front_matter(path: Path, text: str) -> dict[str, Any]:
    import yaml

    match = _FRONT.match(text)
    if match is None:
        return {}
    try:
        found = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise ReferencesError(f"{path}: the lines between --- are not YAML ({error})") from None
    if not isinstance(found, dict) or (unknown := sorted(map(str, found.keys() - ALLOWED))):
        what = f"unknown fields {', '.join(unknown)}" if isinstance(found, dict) else "no fields"
        raise ReferencesError(
            f"{path}: {what} between the lines of ---: allowed are {', '.join(sorted(ALLOWED))}"
        )
    return found


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield headings and what stands below them; a heading with nothing below is left out."""
    marks = list(_HEADING.finditer(text))
    ends = [*(mark.start() for mark in marks), len(text)]
    yield "", text[: ends[0]]
    for mark, end in zip(marks, ends[1:], strict=True):
        yield mark[1], text[mark.end() : end]


def _pieces(body: str) -> Iterator[str]:
    piece = ""
    for paragraph in re.split(r"\n\s*\n", body.strip()):
        if piece and len(piece) + len(paragraph) > MAX_SECTION_CHARS:
            yield piece
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    if piece.strip():
        yield piece
