"""Questions whose answer is one disease, and which do not name it.

Two origins, both from the validation split alone:

- clinical vignettes (CasiMedicos, English) whose last sentence asks for the diagnosis and whose
  right option, with which the answer's text begins, is one of the listed ones;
- answers that list the signs of a disease ("Signs and symptoms reported for X include: A, B."),
  turned round: "Which disease has these signs and symptoms: A, B?". Ways of inheritance and other
  words about no sign are left out.

An item whose question holds the disease's name, or a word that few other names have, is left out.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from scripts.datasets.pairs import load_pairs
from scripts.datasets.record import Record, normal_name, plain_words, read_jsonl

VIGNETTES = "casimedicos_validation_en_fr.jsonl"
MIN_SIGNS = 3
_ASKS = re.compile(
    r"(likely|probable|correct|her|his|the|following) diagnos[ei]s\b|suspect as the first"
)
_ABOUT_TESTS = re.compile(r"\b(test|tests|maneuver|confirm|procedure)\b")
_SIGNS = re.compile(r"^Signs and symptoms reported for .+? include: (?P<signs>.+?)\.*$", re.DOTALL)
_NO_SIGN = re.compile(
    r"inheritance|onset|sporadic|variable expressivity|incomplete penetrance|heterogeneous|"
    r"somatic mutation|\d+/\d+|\d+%"
)
# Words of a disease's name that a list of signs may hold without naming the disease.
_COMMON = 30  # names of the training split that a word must be in to count as no hint


@dataclass(frozen=True, slots=True)
class DiagnosticItem:
    """A question whose right answers have one of `names`: the disease's, and its brackets'."""

    id: str
    question: str
    names: tuple[str, ...]
    origin: str  # "vignette" or "signs"


def diagnostic_items(data: Path, specialty: str) -> list[DiagnosticItem]:
    """Return the items of one specialty, in the order of the files.

    Raises:
        DataError: as `load_pairs`.
    """
    pairs = load_pairs(data, specialty)
    counts = Counter(w for focus in {p.focus for p in pairs.train} for w in _words(focus))
    found = [item for pair in pairs.validation if (item := _from_signs(pair)) is not None]
    if data.is_dir() and (data / VIGNETTES).is_file():
        found += _vignettes(data / VIGNETTES, specialty)
    return [item for item in found if not _gives_away(item, counts)]


def is_named(answer: str, names: tuple[str, ...]) -> bool:
    """Tell whether `answer` has all words of one of the names, in order and together.

    Accents and words of a subtype are ignored.
    """
    said = " " + " ".join(_words(answer)) + " "
    return any(wanted and f" {wanted} " in said for wanted in map(_phrase, names))


def _from_signs(pair: Record) -> DiagnosticItem | None:
    match = _SIGNS.match(pair.answer)
    if match is None or not pair.focus:
        return None
    signs = [re.sub(r"\s*\d+\.*$", "", sign).strip() for sign in match["signs"].split(",")]
    signs = [sign for sign in signs if sign and not _NO_SIGN.search(sign.lower())]
    if len(signs) < MIN_SIGNS:
        return None
    question = f"Which disease has these signs and symptoms: {', '.join(signs)}?"
    return DiagnosticItem(f"diagnosis/{pair.id}", question, _names(pair.focus), "signs")


def _vignettes(file: Path, specialty: str) -> list[DiagnosticItem]:
    items = []
    for _, row in read_jsonl(file):
        question = str(row.get("input") or "")
        last = re.split(r"[.?:] ", question)[-1].lower()
        if (row.get("specialty"), row.get("lang")) != (specialty, "en"):
            continue
        options = {
            re.sub(r"^\d+-\s*", "", line).strip(" .")
            for line in str(row.get("options") or "").splitlines()
        }
        right = str(row.get("output") or "").partition(". ")[0].strip(" .")
        if right in options and _ASKS.search(last) and not _ABOUT_TESTS.search(last):
            items.append(
                DiagnosticItem(f"diagnosis/{row['id']}", question, _names(right), "vignette")
            )
    return items


def _names(name: str) -> tuple[str, ...]:
    """Return the name and what its brackets say: "Deep vein thrombosis (DVT)" is two names."""
    inside = re.findall(r"\(([^)]+)\)", name)
    return tuple(n.strip() for n in (re.sub(r"\([^)]*\)", " ", name), *inside) if n.strip())


def _words(text: str) -> list[str]:
    return [
        word[:-1] if len(word) > 3 and word.endswith("s") else word for word in plain_words(text)
    ]


def _phrase(name: str) -> str:
    """Return the name's words in order, without those that `normal_name` leaves out."""
    kept = set(normal_name(name).split())
    return " ".join(word for word in _words(name) if word in kept)


def _gives_away(item: DiagnosticItem, counts: Counter[str]) -> bool:
    asked = set(_words(item.question))
    hints = {
        word
        for name in item.names
        for word in _phrase(name).split()
        if len(word) > 3 and counts[word] < _COMMON
    }
    return is_named(item.question, item.names) or not hints.isdisjoint(asked)
