"""Read MedQuAD and Medical Abstracts, whose specialties come from keywords."""

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scripts.datasets.record import DataError, Record
from scripts.datasets.source import Source, SourceReading, checked_specialty
from scripts.datasets.specialties import has_keyword, labelled, specialty_of
from scripts.datasets.tables import read_table

MAX_ANSWER_CHARS = 1500  # of an abstract; MedQuAD's median answer is 700
MAX_TITLE_WORDS = 30
_LABELLED = {"condition_label", "medical_abstract"}  # the columns of Medical Abstracts


def medquad(source: Source, reading: SourceReading) -> Iterator[Record]:
    """Read MedQuAD's XML; count its answers that were removed for copyright and are empty."""
    paths = sorted(source.folder.rglob("*.xml"))
    reading.add_file(*paths, name=f"{len(paths)} XML files")
    seen: set[str] = set()
    for path in paths:
        try:
            document = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise DataError(f"{path.parent.name}/{path.name}: not XML ({error})") from None
        focus = (document.findtext("Focus") or "").strip()
        synonyms = [s.text.strip() for s in document.iter("Synonym") if s.text and s.text.strip()]
        specialty = specialty_of(focus, " ".join(synonyms))
        if specialty is None:
            reading.left_out["no single specialty"] += len(list(document.iter("QAPair")))
            continue
        whole = Record(
            *("", "", "", specialty, specialty),
            source=f"MedQuAD/{document.get('source') or path.parent.name}",
            where=f"{path.parent.name}/{path.name}",
            focus=focus,
            synonyms=tuple(synonyms),
            cuis=tuple(sorted({c.text.strip() for c in document.iter("CUI") if c.text})),
            url=document.get("url") or "",
        )
        for pair in document.iter("QAPair"):
            record = _medquad_pair(whole, pair, path, seen)
            if record.answer:
                seen.add(record.id)
                yield record
            else:
                reading.left_out["empty answer"] += 1


def _medquad_pair(
    whole: Record, pair: ElementTree.Element, path: Path, seen: Container[str]
) -> Record:
    """Return one pair of the document `whole`.

    MedQuAD's ids are unique within one of its folders at best: the folder's name goes before them,
    and the file's name before an id that the folder repeats.
    """
    question = pair.find("Question")
    where = f"{whole.where}, pair {pair.get('pid')}"
    if question is None or not _in_one_line(question.text):
        raise DataError(f"{where}: it has no question")
    id_ = f"{path.parent.name}/{question.get('qid') or path.stem}"
    return replace(
        whole,
        id=f"{path.parent.name}/{path.stem}/{pair.get('pid')}" if id_ in seen else id_,
        question=_in_one_line(question.text).replace(" ?", "?"),
        answer=_in_one_line(pair.findtext("Answer")),
        where=where,
        qtype=question.get("qtype") or "",
    )


def _in_one_line(text: str | None) -> str:
    """Return the text without the indentation of the XML file."""
    return " ".join((text or "").split())


def abstracts(source: Source, reading: SourceReading) -> Iterator[Record]:
    """Read Medical Abstracts, or another table of abstracts whose columns the options name.

    The title becomes the question: a column, or the abstract's first sentence. The specialty is
    told by keywords in the text, of those that condition_label allows; by those in the column that
    `keywords` names; or it is the one of `keyword`, and abstracts without that word are left out.
    """
    chosen = _specialty_of_keyword(source)
    for number, row in read_table(source.folder, reading):
        where = f"{source.folder.name}, line {number}"
        title, body = _title_and_body(source, row, where)
        if chosen is None:
            specialty = _specialty_of_row(source, row, where, title, body)
        elif has_keyword(source.options["keyword"], f"{title} {body}"):
            specialty = chosen
        else:
            reading.left_out["without the keyword"] += 1
            continue
        answer = _cut(body)
        if specialty is None:
            reading.left_out["no single specialty"] += 1
        elif not answer or not title or len(title.split()) > MAX_TITLE_WORDS:
            reading.left_out["no title or no text after it"] += 1
        else:
            yield Record(
                id=f"{source.folder.stem}-{number}",
                question=f"What does research say about this: {title}?",
                answer=answer,
                specialty=specialty,
                file=specialty,
                source="Medical Abstracts" if row.keys() >= _LABELLED else source.folder.name,
                where=where,
                focus=title,
                qtype="research",
            )


def _specialty_of_keyword(source: Source) -> str | None:
    """Return the specialty of the option `keyword`; None without one.

    Raises:
        DataError: no specialty has the keyword, and `all` names none; or `all` without it.
    """
    keyword, named = source.options.get("keyword"), source.options.get("all")
    if keyword is None:
        if named is not None:
            raise DataError(
                f"--source {source.title()}: all={named} goes with keyword=WORD: which abstracts?"
            )
        return None
    found = named or specialty_of(keyword)
    if not keyword.strip("* ") or found is None:
        raise DataError(
            f"--source {source.title()}: keyword={keyword} is a word of no specialty: name the "
            "specialty too, as in keyword=warts,all=dermatology"
        )
    return checked_specialty(found, f"--source {source.title()}")


def _title_and_body(source: Source, row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return the title, without its full stop, and the text behind it."""
    text = _cell(row, source.options.get("abstract", "medical_abstract"), where, "abstract")
    if "title" not in source.options:
        title, _, body = text.partition(". ")
        return title, body.strip()
    title = _cell(row, source.options["title"], where, "title")
    return title.rstrip(".?! "), text


def _specialty_of_row(
    source: Source, row: Mapping[str, Any], where: str, title: str, body: str
) -> str | None:
    if column := source.options.get("keywords"):
        return specialty_of(_cell(row, column, where, "keywords"))
    if source.options.keys() & {"title", "abstract"} and "condition_label" not in row:
        return specialty_of(title, body)
    allowed = labelled(_cell(row, "condition_label", where, None))
    if allowed is None:
        raise DataError(f"{where}: condition_label {row['condition_label']!r}; expected 1 to 5")
    return specialty_of(title, body, allowed)


def _cell(row: Mapping[str, Any], column: str, where: str, option: str | None) -> str:
    """Return a cell's text. Raises DataError: no such column, or it is empty."""
    if not row.get(column):
        hint = f"; name it: {option}=COLUMN" if option and column not in row else ""
        raise DataError(f"{where}: no '{column}' (columns found: {', '.join(map(str, row))}){hint}")
    value = row[column]
    return ("; ".join(map(str, value)) if isinstance(value, list) else str(value)).strip()


def _cut(text: str) -> str:
    """Return the sentences that fit into MAX_ANSWER_CHARS."""
    if len(text) <= MAX_ANSWER_CHARS:
        return text
    return text[: text.rfind(". ", 0, MAX_ANSWER_CHARS) + 1]
