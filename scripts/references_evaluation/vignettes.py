"""Patients made from the HPO's annotations: some signs of one disease, in one way of speaking."""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from references.ingest.hpo import Disease, Hpo
from references.words import words

MIN_FREQUENCY = 0.3  # of a sign, to count as one that the disease shows
MIN_SIGNS = 6  # such signs, for a disease to be drawn
FLOOR = 0.01  # weight of a sign that the disease almost never has
SIZES = (3, 4, 5, 6)
_FORM = re.compile(
    r"\b(?:type|autosomal|dominant|recessive|syndrome|x-linked|susceptibility|to|\d+\w?|i+v?|vi*)\b"
)


@dataclass(frozen=True, slots=True)
class Vignette:
    disease: str
    signs: tuple[str, ...]


def held_out(disease: str) -> bool:
    """Say whether a disease is for reporting; the other half is for tuning."""
    return hashlib.sha256(disease.encode()).digest()[0] % 2 == 1


def vignettes(
    hpo: Hpo,
    phrases: Mapping[str, Sequence[str]],
    size: int,
    count: int,
    *,
    seed: int,
    tuning: bool = False,
) -> list[Vignette]:
    """Draw diseases, and of each `size` signs with a chance that grows with their frequency.

    Args:
        phrases: term id -> ways to say it; a sign that has none is not drawn.
    """
    draw = random.Random(f"{seed} {size} {tuning}")
    pool = [
        d
        for d in sorted(hpo.diseases.values(), key=lambda d: d.id)
        if held_out(d.id) != tuning and _shown(d) >= MIN_SIGNS and len(_terms(d, phrases)) >= size
    ]
    return [
        _of(disease, phrases, size, draw) for disease in draw.sample(pool, min(count, len(pool)))
    ]


def _shown(disease: Disease) -> int:
    return sum(sign.frequency >= MIN_FREQUENCY for sign in disease.signs.values())


def _terms(disease: Disease, phrases: Mapping[str, Sequence[str]]) -> list[str]:
    return [term for term in disease.signs if term in phrases]


def _of(
    disease: Disease, phrases: Mapping[str, Sequence[str]], size: int, draw: random.Random
) -> Vignette:
    terms = _terms(disease, phrases)
    weights = [max(disease.signs[term].frequency, FLOOR) for term in terms]
    chosen: dict[str, None] = {}
    while len(chosen) < size:
        chosen[draw.choices(terms, weights)[0]] = None
    return Vignette(disease.id, tuple(draw.choice(phrases[term]) for term in chosen))


def form(name: str) -> str:
    """Return what all forms of a disease are called: without type, number and inheritance."""
    return " ".join(words(_FORM.sub(" ", name.lower())))
