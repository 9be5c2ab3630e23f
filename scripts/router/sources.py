"""Read public terminologies and question sets as entries of the router's training set.

| kind | file | what it gives |
| --- | --- | --- |
| `prepared` | folder of `prepare_medical_dataset` | questions, and passages of the answers |
| `medquad` | the folder of MedQuAD's XML files | its questions, those without an answer too |
| `hpo` | `hp.obo` of the Human Phenotype Ontology | signs and symptoms, everyday synonyms too |
| `hpo_fr` | its French `hp-fr.babelon.tsv`; needs `,terms=hp.obo` | the same in French |
| `hpo_diseases` | its `phenotype.hpoa`; needs `,terms=hp.obo` | rare diseases, by their signs |
| `icd10cm` | the tabular XML of ICD-10-CM (CDC/NCHS) | diseases and their inclusion terms |
| `clinc150` | `data_full.json` of CLINC150 | out-of-scope questions |
| `casimedicos` | its JSON lines, English or French | exam cases; validation only |
| `written` | JSON lines with input, specialty, lang; `,split=head` | questions that we wrote |
| `glossary` | likewise | terms that we wrote |
| `cases` | findings of diseases; `,terms=` a glossary | texts composed of them (cases.py) |

A terminology's specialties are in knowledge.yaml.
"""

import dataclasses
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from xml.etree import ElementTree

from references.passage import ReferencesError
from router.training.examples import OUT_OF_SCOPE
from scripts.datasets.record import DataError, normal_name, read_jsonl
from scripts.datasets.source import Source
from scripts.datasets.sources import read_source
from scripts.datasets.specialties import specialty_of
from scripts.router.cases import from_cases, from_terms, read_cases
from scripts.router.dataset import Entry, question, term
from scripts.router.terminologies import hpo, hpo_diseases, hpo_fr, icd10cm, rules

PASSAGE_CHARS = 600
COMPOSED = "written cases"
TEXTS_OF_A_CASE = {"vignette": 6, "exam": 3, "letter": 3, "abstract": 3}  # in each language
TEXTS_OF_TERMS = 120  # of each specialty and language
TEMPLATED = "HPO-fr (templated)"


def read_source_entries(source: Source) -> list[Entry]:
    """Return all entries of a source.

    Raises:
        DataError: names the file, what was found and what is expected.
    """
    if not source.folder.exists():
        raise DataError(f"--source {source.kind}:{source.path}: no such file or folder")
    damage = (LookupError, TypeError, AttributeError, ValueError, ElementTree.ParseError)
    try:
        entries = list(READERS[source.kind](source))
    except DataError:
        raise
    except (*damage, ReferencesError) as error:
        raise DataError(
            f"--source {source.kind}:{source.path}: not the format that kind {source.kind} expects "
            f"({type(error).__name__}: {error})"
        ) from None
    if not entries:
        raise DataError(f"--source {source.kind}:{source.path}: no usable entry in it")
    return entries


def _prepared(source: Source) -> Iterator[Entry]:
    records, _ = read_source(Source("jsonl", source.path))
    for record in records:
        if record.specialty == OUT_OF_SCOPE:
            group = f"text {record.question.lower()}"
        else:
            group = f"name {normal_name(record.focus or record.question)}"
        # Templated questions train as the bare term, so that held-out ones have new templates too.
        is_term = record.source == TEMPLATED and record.split == "train" and bool(record.focus)
        entry = Entry(
            id=record.id,
            text=record.focus if is_term else record.question,
            specialty=record.specialty,
            lang=record.lang,
            source=record.source,
            group=_hpo_group(record.id) or group,
            kind="term" if is_term else "question",
            names=(normal_name(record.focus),) if record.focus else (),
            split=record.split,
        )
        yield entry
        if record.answer and record.lang in ("en", "fr") and record.is_pair:
            text = _passage(record.answer, record.id)
            yield dataclasses.replace(entry, id=f"{record.id}/passage", text=text, kind="passage")


def _medquad(source: Source) -> Iterator[Entry]:
    """Label questions by the name of their disease; skip one that no specialty claims alone."""
    for path in sorted(source.folder.rglob("*.xml")):
        document = ElementTree.parse(path).getroot()
        focus = " ".join((document.findtext("Focus") or "").split())
        synonyms = [s.text for s in document.iter("Synonym") if s.text]
        specialty = specialty_of(focus, " ".join(synonyms))
        for asked in document.iter("Question") if specialty and focus else ():
            yield Entry(
                id=f"{path.parent.name}/{asked.get('qid') or path.stem}",
                text=" ".join((asked.text or "").split()).replace(" ?", "?"),
                specialty=str(specialty),
                lang="en",
                source=f"MedQuAD/{document.get('source') or path.parent.name}",
                group=f"name {normal_name(focus)}",
                kind="question",
                names=(normal_name(focus),),
                split=_drawn_split(normal_name(focus)),
            )


def _drawn_split(name: str) -> str:
    """Return the split for a source that has none: a tenth of the diseases is for validation."""
    return "validation" if zlib.crc32(f"validation {name}".encode()) % 10 == 0 else "train"


def _hpo_group(id_: str) -> str | None:
    """Return the group that questions about a sign share with its names in other languages."""
    found = re.fullmatch(r"hpofr(?:def)?-(\d{7})", id_)
    return f"HP:{found[1]}" if found else None


def _passage(answer: str, id_: str) -> str:
    """Return at most PASSAGE_CHARS of an answer, from a sentence that its id picks."""
    if len(answer) <= PASSAGE_CHARS:
        return answer
    starts = [0, *(m.end() for m in re.finditer(r"[.!?] ", answer[:-PASSAGE_CHARS]))]
    start = starts[zlib.crc32(id_.encode()) % len(starts)]
    cut = answer[start : start + PASSAGE_CHARS]
    return cut[: cut.rfind(" ")]


def _clinc150(source: Source) -> Iterator[Entry]:
    parts = json.loads(source.folder.read_text(encoding="utf-8"))
    for part, split in (("oos_train", "train"), ("oos_val", "validation")):
        for number, (text, _) in enumerate(parts[part]):
            id_, group = f"clinc-{part}-{number}", f"text {text.lower()}"
            yield question(id_, text, OUT_OF_SCOPE, "en", f"CLINC150 {part}", group, split)


def _casimedicos(source: Source) -> Iterator[Entry]:
    lang = source.options.get("lang", "en")
    labels: Mapping[str, str] = rules()["casimedicos"]
    for number, item in read_jsonl(source.folder):
        specialty = labels.get(str(item["type"]).strip().upper())
        if specialty:
            id_, group = f"casi-{source.folder.stem}-{number}-{lang}", f"casi {item['id']}"
            text, title = item["full_question"], "CasiMedicos (MIR exam)"
            yield question(id_, text, specialty, lang, title, group, "validation")


def _glossary(source: Source) -> Iterator[Entry]:
    for entry in _written(source):
        yield term(entry.id, entry.text, entry.specialty, entry.lang, "glossary")


def _written(source: Source) -> Iterator[Entry]:
    split = source.options.get("split", "train")
    for number, item in read_jsonl(source.folder):
        for field in ("input", "specialty", "lang"):
            if not isinstance(item.get(field), str) or not item[field].strip():
                raise DataError(f"{source.folder.name}, line {number}: '{field}' must be a text")
        text, specialty, lang = (item[field] for field in ("input", "specialty", "lang"))
        id_, group = f"{source.folder.name.split('.')[0]}-{number}", f"text {text.lower()}"
        yield question(id_, text, specialty, lang, "written", group, split)


def _cases(source: Source) -> Iterator[Entry]:
    drawn = list(from_cases(read_cases(source.folder), TEXTS_OF_A_CASE, seed=0))
    if "terms" in source.options:
        known: dict[tuple[str, str], list[str]] = defaultdict(list)
        for entry in _glossary(Source("glossary", source.options["terms"])):
            known[entry.specialty, entry.lang].append(entry.text)
        drawn += from_terms(known, TEXTS_OF_TERMS, seed=0)
    for number, (case, style, text) in enumerate(drawn):
        id_ = f"{source.folder.stem}-{style}-{number}"
        split = source.options.get("split", "train")
        yield question(id_, text, case.specialty, case.lang, COMPOSED, case.group, split)


READERS: dict[str, Callable[[Source], Iterator[Entry]]] = {
    "prepared": _prepared,
    "medquad": _medquad,
    "hpo": hpo,
    "hpo_fr": hpo_fr,
    "hpo_diseases": hpo_diseases,
    "icd10cm": icd10cm,
    "clinc150": _clinc150,
    "casimedicos": _casimedicos,
    "written": _written,
    "glossary": _glossary,
    "cases": _cases,
}
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(READERS, ()),
    "hpo_fr": ("terms",),
    "hpo_diseases": ("terms",),
    "casimedicos": ("lang",),
    "cases": ("terms", "split"),
    "written": ("split",),
}
