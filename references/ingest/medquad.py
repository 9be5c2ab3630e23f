"""Passages out of MedQuAD's XML: one for each answered question."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from references.passage import Passage, ReferencesError

LICENCE = "CC BY 4.0 (MedQuAD; Ben Abacha and Demner-Fushman, BMC Bioinformatics 2019, 20:511)"


def read_medquad(folder: Path, specialty: str | None = None) -> Iterator[Passage]:
    """Yield a passage for each question with an answer in the XML files below a folder.

    The question is the title; the disease and its synonyms are other names. Answers that the
    data set leaves empty, for copyright, give no passage.

    Raises:
        ReferencesError: no XML file, or one that is not MedQuAD's.
    """
    files = sorted(folder.rglob("*.xml")) if folder.is_dir() else []
    if not files:
        raise ReferencesError(f"{folder}: it is no folder with MedQuAD's XML files")
    for path in files:
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, UnicodeDecodeError, OSError) as error:
            raise ReferencesError(f"{path}: not readable XML ({error})") from None
        if root.tag != "Document" or root.find("QAPairs") is None:
            raise ReferencesError(f"{path}: not a Document with QAPairs: is it MedQuAD's?")
        yield from _of_document(root, path, specialty)


def _of_document(root: ElementTree.Element, path: Path, specialty: str | None) -> Iterator[Passage]:
    focus = (root.findtext("Focus") or "").strip()
    other = [(e.text or "").strip() for e in root.iter("Synonym")]
    names = tuple(dict.fromkeys(name for name in (focus, *other) if name))
    for pair in root.iter("QAPair"):
        question = pair.find("Question")
        text = (pair.findtext("Answer") or "").strip()
        if question is None or not text:
            continue
        number = question.get("qid") or f"{root.get('id', path.stem)}-{pair.get('pid', '')}"
        title = " ".join((question.text or "").split())
        yield Passage(
            id=f"medquad-{number}",
            title=title or focus,
            text=text,
            language="en",
            source=f"{root.get('source', 'unknown')} (National Institutes of Health), in MedQuAD",
            licence=LICENCE,
            synonyms=tuple(name for name in names if name != title),
            specialty=specialty,
            url=root.get("url", ""),
        )
