"""Rank the passages of a shelf for a query: names first, then words and meaning in common.

The shelf's names, BM25 of the full-text index, and the nearest name vectors propose candidates;
each is scored by how well one of its names fits the query, how much of the query it holds, its
BM25 and its nearness.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

from references.embedding import Floats, Nearness
from references.passage import Passage
from references.query import Group, Query
from references.version import Candidate, Version
from references.words import key_of

CANDIDATES = 40  # of each kind
MAX_KEYS = 400  # name keys that are looked up for one question
_WHOLE = 0.999  # fit of a name that is the question, rounding aside
MAX_POSTINGS = 5_000  # passages that the index may score for one question


# A candidate: its score times -1 and its id, by which it is sorted; its name, cover and nearness.
_Found = tuple[float, str, Candidate, tuple[float, float, float, float]]


@dataclass(frozen=True, slots=True)
class Weights:
    """How the parts of a score add up; chosen by scripts.evaluate_references on tuning rows."""

    exact: float = 6.0  # a name that is the whole question, and nothing else
    name: float = 2.5
    cover: float = 5.0
    bm25: float = 0.5
    near: float = 1.5
    near_text: float = 3.0
    prominence: float = 2.2
    specialty: float = 0.2
    kind: float = 1.5


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate.

    Attributes:
        name: how well its best name fits the query, 0 to 1.
        cover: share of the query's weight that is in the passage, 0 to 1.
        near: cosine of the query's vector and its nearest name's; without vectors, the mean of
            `name` and `cover`.
        near_text: of the query's and its text's, likewise.
    """

    passage: Passage
    score: float
    name: float
    cover: float
    near: float
    near_text: float


def rank(
    query: Query,
    vector: Floats | None,
    reader: Version,
    specialty: str | None,
    weights: Weights,
    limit: int,
) -> list[Ranked]:
    """Return the best passages of a shelf, the best first.

    Args:
        vector: (D,) of the query, where the shelf has vectors.
    """
    (wanted, names_only), keys = _any_of(query), _keys(query)
    scores = dict(reader.matches(wanted, CANDIDATES, names_only=names_only)) if wanted else {}
    numbers = {*scores, *(reader.named(keys, CANDIDATES) if keys else ())}
    near: Mapping[int, Nearness] = {}
    if vector is not None and vector.any():
        near = reader.nearest(vector, numbers, CANDIDATES)
        numbers |= near.keys()
    best = max(scores.values(), default=0.0)
    found: list[_Found] = []
    candidates = reader.fetch(numbers)
    rarity = _rarity(query, candidates.values(), reader)
    for number, candidate in candidates.items():
        name, cover = _fit(query, candidate, rarity)
        stand_in = (name + cover) / 2  # for a passage, or a question, without vectors
        near_name, near_text = near.get(number, (stand_in, stand_in))
        score = (
            weights.name * name
            + weights.exact * (name > _WHOLE)
            + weights.prominence * candidate.prominence
            + weights.cover * cover
            + weights.bm25 * (scores.get(number, 0.0) / best if best > 0 else 0.0)
            + weights.near * near_name
            + weights.near_text * near_text
            + weights.specialty * (specialty is not None and candidate.specialty == specialty)
            + weights.kind * ((candidate.kind == "disease") == query.wants_signs)
        )
        found.append((-score, candidate.id, candidate, (name, cover, near_name, near_text)))
    found.sort(key=itemgetter(0, 1))
    best_ones = list(islice(_without_twins(found), limit))
    passages = reader.by_id([id_ for _, id_, *_ in best_ones])
    return [Ranked(passages[id_], -worse, *parts) for worse, id_, _, parts in best_ones]


def _without_twins(found: Iterable[_Found]) -> Iterator[_Found]:
    """Leave out a disease whose name stood before: several registers list the same one."""
    seen: set[str] = set()
    for one in found:
        key = key_of(one[2].names[0]) if one[2].kind == "disease" else ""
        if not key or key not in seen:
            seen.add(key)
            yield one


def _any_of(query: Query) -> tuple[list[str], bool]:
    """Return the stems of the rarest groups, as many as the index can score in time, and whether
    to look for them in names alone."""
    chosen: list[str] = []
    postings = 0
    for group in sorted(query.groups, key=lambda group: group.count):
        if group.stems and (not chosen or postings + group.count <= MAX_POSTINGS):
            chosen += group.stems
            postings += group.count
    # Only common words: passages that are named so are enough, and fewer.
    return list(dict.fromkeys(chosen)), postings > MAX_POSTINGS


def _keys(query: Query) -> list[str]:
    """Return keys of names that the query may hold: runs of its words, and of their meanings."""
    options = [_strongest(group) for group in query.groups]
    runs: dict[str, None] = {}
    for size in range(min(8, len(options)), 0, -1):
        for at in range(len(options) - size + 1):
            chosen = options[at : at + size]
            if all(chosen):
                runs |= dict.fromkeys(key_of(picked) for picked in _picks(chosen))
    return list(runs)[:MAX_KEYS]


def _strongest(group: Group) -> list[str]:
    return sorted(group.stems, key=lambda s: -group.stems[s])[:4]


def _picks(options: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the first choice for each word, and those with one other choice; of two, all."""
    first = [option[0] for option in options]
    picks = [first]
    for at, option in enumerate(options):
        picks += [[*first[:at], other, *first[at + 1 :]] for other in option[1:]]
    if len(options) == 2:
        picks += [[a, b] for a in options[0][1:] for b in options[1][1:]]
    return picks


def _rarity(query: Query, candidates: Iterable[Candidate], reader: Version) -> Mapping[str, float]:
    """Return the weights of the stems in the names of candidates that share one with the query."""
    sharing = [c.name_stems for c in candidates if not query.stems.isdisjoint(c.name_stems)]
    stems = frozenset[str]().union(*sharing)
    counts, total = reader.counts(stems), reader.num_passages
    return {s: math.log(1 + total / (counts[s] + 1)) for s in stems}


def _fit(query: Query, candidate: Candidate, rarity: Mapping[str, float]) -> tuple[float, float]:
    """Return how well a name of the passage fits the query, and how much of it the passage has."""
    if not query.weight or query.stems.isdisjoint(candidate.stems):
        return 0.0, 0.0
    fit = max(_name_fit(query, name, rarity) for name in candidate.names)
    held = sum(group.weight * group.held_by(candidate.stems) for group in query.groups)
    return fit, min(1.0, held / query.weight)


def _name_fit(query: Query, name: frozenset[str], rarity: Mapping[str, float]) -> float:
    """Return F0.5 of what the query has of the name (precision) and the name of the query (recall).

    Precision counts twice as much (van Rijsbergen 1979): a long question may hold a whole name, or
    one way to say it, and much besides.
    """
    if query.stems.isdisjoint(name):
        return 0.0
    whole = sum(rarity[s] for s in name)
    stood_for: dict[str, float] = {}
    held = 0.0
    for group in query.groups:
        if met := group.stems.keys() & name:
            held += group.weight * group.held_by(name)
            for s in met:
                stood_for[s] = max(min(1.0, group.stems[s] + 0.3), stood_for.get(s, 0.0))
    if not held or not whole:
        return 0.0
    precision = sum(rarity[s] * value for s, value in stood_for.items()) / whole
    recall = min(1.0, held / query.weight)
    return 1.25 * precision * recall / (0.25 * precision + recall)
