"""Diseases whose recorded signs match some signs: sums of information content over an ontology.

A sign counts the more, the fewer diseases have it (its information content, -log of their share;
Resnik 1995), and the more frequent it is in the disease. Where a disease has not the sign itself
but one with the same ancestor in the ontology, the ancestor's information content counts in part.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from references.ingest.hpo import Hpo, sign_names
from references.passage import ReferencesError
from references.words import name_key

ARRAYS = ("signs", "sign_diseases", "sign_frequencies")
MIN_CONTENT = 1.0  # nats: what is above this in the ontology tells diseases apart too little
RELATED = 0.3  # how much a sign with a common ancestor counts, of the ancestor's content
RARE = 0.7  # how much a sign counts that the disease almost never has, of one that it always has
MAX_MEANINGS = 8  # terms that a sign in other words may stand for
_SEPARATOR = re.compile(
    r"\s*(?:[,;:.?!\n]|\b(?:and|but|with|plus|also|et|mais|avec|ainsi que|puis)\b)\s*", re.I
)
_NEGATED = re.compile(r"\b(?:no|not|without|denies|never|pas|sans|aucune?|jamais|ni)\b", re.I)
Array = npt.NDArray[np.float32]
Meanings = Callable[[str], Sequence[tuple[str, float]]]
"""Returns ids of terms that a sign may stand for, and how well each fits, up to 1."""


@dataclass(frozen=True, slots=True)
class Match:
    """A disease whose recorded signs match.

    Attributes:
        disease: the id of its passage.
        signs: sign as given -> title of the term that the disease has or shares an ancestor of.
    """

    disease: str
    score: float
    signs: Mapping[str, str]


def arrays_of(hpo: Hpo) -> dict[str, bytes]:
    """Return what a shelf keeps for the diagnosis: by term, the diseases with it.

    A disease with a kind of the term has the term.

    `signs` is JSON: `terms` by position with the titles and ancestors, `keys` of all names,
    `diseases`, and where each term's diseases end. Frequencies are hundredths.
    """
    names = sign_names(hpo)
    terms = sorted(names)
    place = {id_: at for at, id_ in enumerate(terms)}
    diseases = [disease for disease in hpo.diseases.values() if disease.signs]
    having: list[dict[int, int]] = [{} for _ in terms]
    for number, disease in enumerate(diseases):
        for sign in disease.signs.values():
            for above in hpo.above[sign.term] & names.keys():
                known = having[place[above]]
                known[number] = max(known.get(number, 0), round(100 * sign.frequency))
    keys: dict[str, int] = {}
    for id_ in terms:
        for name in names[id_]:
            keys.setdefault(name_key(name), place[id_])
    for id_ in terms:  # a term's own name beats another one's synonym
        keys[name_key(names[id_][0])] = place[id_]
    index = {
        "terms": terms,
        "titles": [names[id_][0] for id_ in terms],
        "above": [[place[a] for a in sorted(hpo.above[id_] & names.keys())] for id_ in terms],
        "keys": keys,
        "diseases": [disease.id for disease in diseases],
        "ends": np.cumsum([len(known) for known in having]).tolist(),
    }
    numbers = [number for known in having for number in known]
    frequencies = [share for known in having for share in known.values()]
    return {
        "signs": json.dumps(index).encode(),
        "sign_diseases": np.array(numbers, np.int32).tobytes(),
        "sign_frequencies": np.array(frequencies, np.uint8).tobytes(),
    }


class Signs:
    """The signs of diseases, in memory. Immutable, so safe to use from several threads.

    Args:
        array: returns one of a shelf's arrays.

    Raises:
        ReferencesError: the shelf has no signs.
    """

    def __init__(self, array: Callable[[str], bytes | None]) -> None:
        found = [array(name) for name in ARRAYS]
        if found[0] is None or found[1] is None or found[2] is None:
            raise ReferencesError(
                "the shelf has no signs of diseases: build one from the HPO "
                "(python -m references build)"
            )
        index = json.loads(found[0])
        self._titles: list[str] = index["titles"]
        self._place = {id_: at for at, id_ in enumerate(index["terms"])}
        self._above: list[list[int]] = index["above"]
        self._keys: dict[str, int] = index["keys"]
        self._diseases: list[str] = index["diseases"]
        self._ends: list[int] = [0, *index["ends"]]
        self._numbers = np.frombuffer(found[1], np.int32)
        self._shares = np.frombuffer(found[2], np.uint8).astype(np.float32) / 100
        total = len(self._diseases)
        sizes = np.diff(self._ends)
        self._content = [math.log(total / size) if size else 0.0 for size in sizes.tolist()]

    def rank(self, signs: Sequence[str], meanings: Meanings, limit: int) -> list[Match]:
        """Return the diseases that match best, the best first.

        Args:
            signs: in any words; a name of a term means that term.
            meanings: asked for signs that are no term's name.
        """
        total = np.zeros(len(self._diseases), np.float32)
        found: dict[str, tuple[Array, list[tuple[int, float]]]] = {}
        for sign in dict.fromkeys(signs):
            terms = self._terms(sign, meanings)
            values = self._values(terms)
            found[sign] = values, terms
            total += values
        best = np.argsort(-total, kind="stable")[:limit]
        return [
            Match(self._diseases[at], float(total[at]), self._explained(int(at), found))
            for at in best
            if total[at] > 0
        ]

    def _terms(self, sign: str, meanings: Meanings) -> list[tuple[int, float]]:
        at = self._keys.get(name_key(sign))
        if at is not None:
            return [(at, 1.0)]
        near = [(id_, value) for id_, value in meanings(sign) if id_ in self._place]
        return [(self._place[id_], value) for id_, value in near[:MAX_MEANINGS]]

    def _values(self, terms: Sequence[tuple[int, float]]) -> Array:
        """Return what a sign that may be these terms is worth for each disease."""
        worth: dict[int, float] = defaultdict(float)
        for term, fit in terms:
            for above in self._above[term]:
                if above != term and self._content[above] < MIN_CONTENT:
                    continue
                part = fit * self._content[above] * (1.0 if above == term else RELATED)
                worth[above] = max(worth[above], part)
        values = np.zeros(len(self._diseases), np.float32)
        for above, part in worth.items():
            span = slice(self._ends[above], self._ends[above + 1])
            numbers = self._numbers[span]
            new = part * (RARE + (1 - RARE) * self._shares[span])
            values[numbers] = np.maximum(values[numbers], new)
        return values

    def _explained(
        self, disease: int, found: Mapping[str, tuple[Array, list[tuple[int, float]]]]
    ) -> dict[str, str]:
        return {
            sign: self._titles[self._term_of(disease, terms)]
            for sign, (values, terms) in found.items()
            if terms and values[disease] > 0
        }

    def _term_of(self, disease: int, terms: Sequence[tuple[int, float]]) -> int:
        """Return the first of a sign's terms that the disease has, or else the first."""
        for term, _ in terms:
            if disease in self._numbers[self._ends[term] : self._ends[term + 1]]:
                return term
        return terms[0][0]


def split_signs(question: str) -> list[str]:
    """Return the parts of a question that may be signs; a part with a negation is left out."""
    parts = [part.strip() for part in _SEPARATOR.split(question)]
    return [part for part in parts if part and not _NEGATED.search(part)]
