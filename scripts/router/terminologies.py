"""Read the names in public terminologies; knowledge.yaml gives their specialties.

The entries have no split: names are for training only.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from references.ingest.hpo import specialty_of
from scripts.datasets.record import DataError, normal_name
from scripts.datasets.source import Source
from scripts.datasets.yaml_file import read_yaml
from scripts.router.dataset import Entry, term

RULES = Path(__file__).with_name("knowledge.yaml")
MIN_DEFINITION_CHARS = 60  # a shorter one says no more than the name
MIN_DISEASE_SIGNS = 3  # of a specialty, for a disease to belong to it
MIN_DISEASE_SHARE = 0.6  # of its signs that have a specialty
_SYNONYM = re.compile(r'synonym: "(.*?)" EXACT')
_DEFINITION = re.compile(r'def: "(.*?)" \[')


@dataclass(frozen=True, slots=True)
class _Sign:
    name: str
    synonyms: tuple[str, ...]
    definition: str
    ancestors: frozenset[str]


def rules() -> dict[str, Any]:
    return read_yaml(RULES)


def read_hpo(path: Path) -> dict[str, _Sign]:
    """Return the signs of an OBO file by id, without obsolete ones."""
    raw: dict[str, dict[str, Any]] = {}
    for block in path.read_text(encoding="utf-8").split("\n[Term]\n")[1:]:
        sign: dict[str, Any] = {"synonyms": [], "parents": [], "definition": ""}
        for line in block.partition("\n[")[0].split("\n"):
            key, _, value = line.partition(": ")
            if key in ("id", "name", "is_obsolete"):
                sign[key] = value
            elif key == "is_a":
                sign["parents"].append(value[:10])
            elif found := _SYNONYM.match(line):
                sign["synonyms"].append(found[1])
            elif found := _DEFINITION.match(line):
                sign["definition"] = found[1].replace('\\"', '"')
        if "is_obsolete" not in sign:
            raw[sign["id"]] = sign

    @cache
    def ancestors(id_: str) -> frozenset[str]:
        above = [ancestors(parent) for parent in raw[id_]["parents"]]
        return frozenset({id_}).union(*above)

    return {
        id_: _Sign(t["name"], tuple(t["synonyms"]), t["definition"], ancestors(id_))
        for id_, t in raw.items()
    }


def hpo_specialty(sign: _Sign) -> str | None:
    """Return the specialty of the sign's branches. Returns None if they have none, or several."""
    return specialty_of(sign.ancestors)


def hpo(source: Source) -> Iterator[Entry]:
    for id_, sign in read_hpo(source.folder).items():
        specialty = hpo_specialty(sign)
        if specialty is None:
            continue
        texts = dict.fromkeys((sign.name, *sign.synonyms))
        for number, text in enumerate(texts):
            yield term(f"{id_}/{number}", text, specialty, "en", "HPO", id_)
        if len(sign.definition) > MIN_DEFINITION_CHARS:
            entry = term(f"{id_}/definition", sign.definition, specialty, "en", "HPO", id_)
            yield replace(entry, kind="passage", names=tuple(map(normal_name, texts)))


def hpo_fr(source: Source) -> Iterator[Entry]:
    terms = read_hpo(_terms_file(source))
    with source.folder.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            id_, text = row["subject_id"], row["translation_value"].strip()
            specialty = hpo_specialty(terms[id_]) if id_ in terms else None
            if row["predicate_id"] != "rdfs:label" or specialty is None or not text:
                continue
            yield term(f"{id_}/fr", text, specialty, "fr", "HPO-fr", id_)


def _terms_file(source: Source) -> Path:
    if "terms" not in source.options:
        raise DataError(
            f"--source {source.kind}:{source.path}: add ,terms=hp.obo (the signs' tree)"
        )
    return Path(source.options["terms"])


def hpo_diseases(source: Source) -> Iterator[Entry]:
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
