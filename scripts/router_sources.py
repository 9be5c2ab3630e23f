"""Readers of public terminologies and question sets for the router: each yields entries.

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
| `written` | JSON lines with input, specialty, lang | questions that we wrote |
| `glossary` | likewise | terms that we wrote |

A terminology's specialties are in router_knowledge.yaml.
"""

import csv
import dataclasses
import json
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from scripts.dataset_record import normal_name
from scripts.dataset_sources import Source, read_source
from scripts.dataset_specialties import specialty_of
from scripts.training_data import DataError, read_jsonl

RULES = Path(__file__).with_name("router_knowledge.yaml")
OUT_OF_SCOPE = "out_of_scope"
PASSAGE_CHARS = 600
TEMPLATED = "HPO-fr (templated)"
MIN_DISEASE_SIGNS = 3  # of a specialty, for a disease to belong to it
MIN_DISEASE_SHARE = 0.6  # of its signs that have a specialty
_SYNONYM = re.compile(r'synonym: "(.*?)" EXACT')
_DEFINITION = re.compile(r'def: "(.*?)" \[')


@dataclass(frozen=True, slots=True)
class Entry:
    """One text with its label.

    Attributes:
        group: entries of one group never stand in two splits (a disease, a sign, a text).
        names: normal names of what the text is about; a term that a held-out question is about
            is left out of training.
        kind: "question", "term" (a name, to be put into a question) or "passage".
        split: "train", "validation", or "" where the source has none.
    """

    id: str
    text: str
    specialty: str
    lang: str
    source: str
    group: str
    kind: str
    names: tuple[str, ...] = ()
    split: str = ""


@dataclass(frozen=True, slots=True)
class _Term:
    name: str
    synonyms: tuple[str, ...]
    definition: str
    ancestors: frozenset[str]


@cache
def _rules() -> dict[str, Any]:
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    return rules


def read_entries(source: Source) -> list[Entry]:
    """All entries of a source.

    Raises:
        DataError: names the file, what was found and what is expected.
    """
    if not source.folder.exists():
        raise DataError(f"--source {source.kind}:{source.path}: no such file or folder")
    try:
        entries = list(READERS[source.kind](source))
    except (KeyError, TypeError, AttributeError, ElementTree.ParseError) as error:
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
            yield Entry(
                id=f"{record.id}/passage",
                text=_passage(record.answer, record.id),
                specialty=record.specialty,
                lang=record.lang,
                source=record.source,
                group=entry.group,
                kind="passage",
                names=entry.names,
                split=record.split,
            )


def _medquad(source: Source) -> Iterator[Entry]:
    """Labelled by the name of the disease; what no keyword places in one specialty is left out."""
    for path in sorted(source.folder.rglob("*.xml")):
        document = ElementTree.parse(path).getroot()
        focus = " ".join((document.findtext("Focus") or "").split())
        synonyms = [s.text for s in document.iter("Synonym") if s.text]
        specialty = specialty_of(focus, " ".join(synonyms))
        for question in document.iter("Question") if specialty and focus else ():
            yield Entry(
                id=f"{path.parent.name}/{question.get('qid') or path.stem}",
                text=" ".join((question.text or "").split()).replace(" ?", "?"),
                specialty=str(specialty),
                lang="en",
                source=f"MedQuAD/{document.get('source') or path.parent.name}",
                group=f"name {normal_name(focus)}",
                kind="question",
                names=(normal_name(focus),),
                split=_drawn_split(normal_name(focus)),
            )


def _drawn_split(name: str) -> str:
    """For a source without a split: a tenth of the diseases validates."""
    return "validation" if zlib.crc32(f"validation {name}".encode()) % 10 == 0 else "train"


def _hpo_group(id_: str) -> str | None:
    """Questions about a sign share a group with the sign's names in other languages."""
    found = re.fullmatch(r"hpofr(?:def)?-(\d{7})", id_)
    return f"HP:{found[1]}" if found else None


def _passage(answer: str, id_: str) -> str:
    """At most PASSAGE_CHARS of an answer, from a sentence that its id picks."""
    if len(answer) <= PASSAGE_CHARS:
        return answer
    starts = [0, *(m.end() for m in re.finditer(r"[.!?] ", answer[:-PASSAGE_CHARS]))]
    start = starts[zlib.crc32(id_.encode()) % len(starts)]
    cut = answer[start : start + PASSAGE_CHARS]
    return cut[: cut.rfind(" ")]


def read_hpo(path: Path) -> dict[str, _Term]:
    """Terms of an OBO file by id, obsolete ones left out."""
    raw: dict[str, dict[str, Any]] = {}
    for block in path.read_text(encoding="utf-8").split("\n[Term]\n")[1:]:
        term: dict[str, Any] = {"synonyms": [], "parents": [], "definition": ""}
        for line in block.partition("\n[")[0].split("\n"):
            key, _, value = line.partition(": ")
            if key in ("id", "name", "is_obsolete"):
                term[key] = value
            elif key == "is_a":
                term["parents"].append(value[:10])
            elif found := _SYNONYM.match(line):
                term["synonyms"].append(found[1])
            elif found := _DEFINITION.match(line):
                term["definition"] = found[1].replace('\\"', '"')
        if "is_obsolete" not in term:
            raw[term["id"]] = term

    @cache
    def ancestors(id_: str) -> frozenset[str]:
        above = [ancestors(parent) for parent in raw[id_]["parents"]]
        return frozenset({id_}).union(*above)

    return {
        id_: _Term(t["name"], tuple(t["synonyms"]), t["definition"], ancestors(id_))
        for id_, t in raw.items()
    }


def hpo_specialty(term: _Term) -> str | None:
    """By the branches that the term stands in; None: several specialties, or none."""
    branches: Mapping[str, str] = _rules()["hpo"]
    for root in _rules()["hpo_first"]:
        if root in term.ancestors:
            return branches[root]
    found = {branches[root] for root in branches.keys() & term.ancestors}
    return found.pop() if len(found) == 1 else None


def _hpo(source: Source) -> Iterator[Entry]:
    for id_, term in read_hpo(source.folder).items():
        specialty = hpo_specialty(term)
        if specialty is None:
            continue
        texts = dict.fromkeys((term.name, *term.synonyms))
        for number, text in enumerate(texts):
            yield Entry(
                id=f"{id_}/{number}",
                text=text,
                specialty=specialty,
                lang="en",
                source="HPO",
                group=id_,
                kind="term",
                names=(normal_name(text),),
            )
        if len(term.definition) > 60:
            yield Entry(
                id=f"{id_}/definition",
                text=term.definition,
                specialty=specialty,
                lang="en",
                source="HPO",
                group=id_,
                kind="passage",
                names=tuple(map(normal_name, texts)),
            )


def _hpo_fr(source: Source) -> Iterator[Entry]:
    terms = read_hpo(_terms_file(source))
    with source.folder.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            term, text = terms.get(row["subject_id"]), row["translation_value"].strip()
            specialty = hpo_specialty(term) if term else None
            if row["predicate_id"] != "rdfs:label" or specialty is None or not text:
                continue
            yield Entry(
                id=f"{row['subject_id']}/fr",
                text=text,
                specialty=specialty,
                lang="fr",
                source="HPO-fr",
                group=row["subject_id"],
                kind="term",
                names=(normal_name(text),),
            )


def _terms_file(source: Source) -> Path:
    if "terms" not in source.options:
        raise DataError(
            f"--source {source.kind}:{source.path}: add ,terms=hp.obo (the signs' tree)"
        )
    return Path(source.options["terms"])


def _hpo_diseases(source: Source) -> Iterator[Entry]:
    terms = read_hpo(_terms_file(source))
    signs: dict[str, Counter[str]] = defaultdict(Counter)
    for line in source.folder.read_text(encoding="utf-8").splitlines():
        columns = line.split("\t")
        if line.startswith(("#", "database_id")) or columns[2] == "NOT" or columns[3] not in terms:
            continue
        if specialty := hpo_specialty(terms[columns[3]]):
            signs[columns[1]][specialty] += 1
    for disease, counted in sorted(signs.items()):
        specialty, count = counted.most_common(1)[0]
        if count < MIN_DISEASE_SIGNS or count < MIN_DISEASE_SHARE * counted.total():
            continue
        yield Entry(
            id=f"hpoa/{disease}",
            text=disease,
            specialty=specialty,
            lang="en",
            source="HPO diseases",
            group=f"name {normal_name(disease)}",
            kind="term",
            names=(normal_name(disease),),
        )


def icd_specialty(code: str) -> str | None:
    """By the longest rule that the code begins with."""
    rules: Mapping[str, str | None] = _rules()["icd10cm"]
    plain = code.replace(".", "")
    for length in range(len(plain), 0, -1):
        if plain[:length] in rules:
            return rules[plain[:length]]
    return None


def _icd10cm(source: Source) -> Iterator[Entry]:
    seen: set[str] = set()
    for diagnosis in ElementTree.parse(source.folder).getroot().iter("diag"):
        code = diagnosis.findtext("name") or ""
        specialty = icd_specialty(code)
        if specialty is None:
            continue
        notes = [*diagnosis.findall("inclusionTerm/note"), *diagnosis.findall("includes/note")]
        for number, text in enumerate([diagnosis.findtext("desc"), *(n.text for n in notes)]):
            name = normal_name(
                re.sub(r"\b(left|right|unspecified|other|bilateral)\b", "", text or "")
            )
            if text and name and name not in seen:  # one of the many sides and stages
                seen.add(name)
                yield Entry(
                    id=f"{code}/{number}",
                    text=text,
                    specialty=specialty,
                    lang="en",
                    source="ICD-10-CM",
                    group=f"name {normal_name(text)}",
                    kind="term",
                    names=(normal_name(text),),
                )


def _clinc150(source: Source) -> Iterator[Entry]:
    parts = json.loads(source.folder.read_text(encoding="utf-8"))
    for part, split in (("oos_train", "train"), ("oos_val", "validation")):
        for number, (text, _) in enumerate(parts[part]):
            yield Entry(
                id=f"clinc-{part}-{number}",
                text=text,
                specialty=OUT_OF_SCOPE,
                lang="en",
                source=f"CLINC150 {part}",
                group=f"text {text.lower()}",
                kind="question",
                split=split,
            )


def _casimedicos(source: Source) -> Iterator[Entry]:
    lang = source.options.get("lang", "en")
    labels: Mapping[str, str] = _rules()["casimedicos"]
    for number, item in read_jsonl(source.folder):
        specialty = labels.get(str(item["type"]).strip().upper())
        if specialty:
            yield Entry(
                id=f"casi-{source.folder.stem}-{number}-{lang}",
                text=item["full_question"],
                specialty=specialty,
                lang=lang,
                source="CasiMedicos (MIR exam)",
                group=f"casi {item['id']}",
                kind="question",
                split="validation",
            )


def _glossary(source: Source) -> Iterator[Entry]:
    for entry in _written(source):
        yield dataclasses.replace(
            entry,
            kind="term",
            source="glossary",
            names=(normal_name(entry.text),),
            group=f"name {normal_name(entry.text)}",
            split="",
        )


def _written(source: Source) -> Iterator[Entry]:
    for number, item in read_jsonl(source.folder):
        for field in ("input", "specialty", "lang"):
            if not isinstance(item.get(field), str) or not item[field].strip():
                raise DataError(f"{source.folder.name}, line {number}: '{field}' must be a text")
        yield Entry(
            id=f"{source.folder.stem}-{number}",
            text=item["input"],
            specialty=item["specialty"],
            lang=item["lang"],
            source="written",
            group=f"text {item['input'].lower()}",
            kind="question",
            split="train",
        )


READERS: dict[str, Callable[[Source], Iterator[Entry]]] = {
    "prepared": _prepared,
    "medquad": _medquad,
    "hpo": _hpo,
    "hpo_fr": _hpo_fr,
    "hpo_diseases": _hpo_diseases,
    "icd10cm": _icd10cm,
    "clinc150": _clinc150,
    "casimedicos": _casimedicos,
    "written": _written,
    "glossary": _glossary,
}
OPTIONS: dict[str, frozenset[str]] = {
    **dict.fromkeys(READERS, frozenset()),
    "hpo_fr": frozenset({"terms"}),
    "hpo_diseases": frozenset({"terms"}),
    "casimedicos": frozenset({"lang"}),
}
