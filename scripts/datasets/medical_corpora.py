"""Read MedQuAD and Medical Abstracts, whose specialties come from keywords."""

from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from scripts.datasets.record import DataError, Record
from scripts.datasets.source import Source, SourceReading
from scripts.datasets.specialties import labelled, specialty_of
from scripts.datasets.tables import read_table

MAX_ANSWER_CHARS = 1500  # of an abstract; MedQuAD's median answer is 700
MAX_TITLE_WORDS = 30


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
    """Read Medical Abstracts; the title, which is the first sentence, becomes the question."""
    for number, row in read_table(source.folder, reading):
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
                where=where,
                focus=title,
                qtype="research",
            )


def _cut(text: str) -> str:
    """Return the sentences that fit into MAX_ANSWER_CHARS."""
    if len(text) <= MAX_ANSWER_CHARS:
        return text
    return text[: text.rfind(". ", 0, MAX_ANSWER_CHARS) + 1]
