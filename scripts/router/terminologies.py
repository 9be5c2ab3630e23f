"""Read the names in public terminologies; knowledge.yaml gives their specialties.

The entries have no split: names are for training only.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from references.ingest.hpo import specialty_of
from references.ingest.obo import Term, ancestors, read_obo
from scripts.datasets.record import DataError, normal_name
from scripts.datasets.source import Source
from scripts.datasets.yaml_file import read_yaml
from scripts.router.dataset import Entry, term

RULES = Path(__file__).with_name("knowledge.yaml")
MIN_DEFINITION_CHARS = 60  # a shorter one says no more than the name
MIN_DISEASE_SIGNS = 3  # of a specialty, for a disease to belong to it
MIN_DISEASE_SHARE = 0.6  # of its signs that have a specialty


def rules() -> dict[str, Any]:
    return read_yaml(RULES)


def read_signs(path: Path) -> dict[str, tuple[Term, str]]:
    """Return the terms of an OBO file by id, those whose branches have one specialty, and it."""
    _, terms = read_obo(path)
    above = ancestors(terms)
    found = ((id_, sign, specialty_of(above[id_])) for id_, sign in terms.items())
    return {id_: (sign, specialty) for id_, sign, specialty in found if specialty}


def hpo(source: Source) -> Iterator[Entry]:
    for id_, (sign, specialty) in read_signs(source.folder).items():
        texts = dict.fromkeys((sign.name, *sign.exact))
        for number, text in enumerate(texts):
            yield term(f"{id_}/{number}", text, specialty, "en", "HPO", id_)
        if len(sign.definition) > MIN_DEFINITION_CHARS:
            entry = term(f"{id_}/definition", sign.definition, specialty, "en", "HPO", id_)
            yield replace(entry, kind="passage", names=tuple(map(normal_name, texts)))


def hpo_fr(source: Source) -> Iterator[Entry]:
    signs = read_signs(_terms_file(source))
    with source.folder.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            id_, text = row["subject_id"], row["translation_value"].strip()
            if row["predicate_id"] == "rdfs:label" and id_ in signs and text:
                yield term(f"{id_}/fr", text, signs[id_][1], "fr", "HPO-fr", id_)


def _terms_file(source: Source) -> Path:
    if "terms" not in source.options:
        raise DataError(
            f"--source {source.kind}:{source.path}: add ,terms=hp.obo (the signs' tree)"
        )
    return Path(source.options["terms"])


def hpo_diseases(source: Source) -> Iterator[Entry]:
    signs = read_signs(_terms_file(source))
    specialties: dict[str, Counter[str]] = defaultdict(Counter)
    for line in source.folder.read_text(encoding="utf-8").splitlines():
        columns = line.split("\t")
        if line.startswith(("#", "database_id")) or columns[2] == "NOT" or columns[3] not in signs:
            continue
        specialties[columns[1]][signs[columns[3]][1]] += 1
    for disease, counted in sorted(specialties.items()):
        specialty, count = counted.most_common(1)[0]
        if count < MIN_DISEASE_SIGNS or count < MIN_DISEASE_SHARE * counted.total():
            continue
        yield term(f"hpoa/{disease}", disease, specialty, "en", "HPO diseases")


def icd_specialty(code: str) -> str | None:
    """Return the specialty of the longest rule that the code begins with. Returns None if none."""
    by_prefix: Mapping[str, str | None] = rules()["icd10cm"]
    plain = code.replace(".", "")
    for length in range(len(plain), 0, -1):
        if plain[:length] in by_prefix:
            return by_prefix[plain[:length]]
    return None


def icd10cm(source: Source) -> Iterator[Entry]:
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
                yield term(f"{code}/{number}", text, specialty, "en", "ICD-10-CM")
