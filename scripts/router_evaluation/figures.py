"""From scored questions to the figures of the report: pure functions, no words.

A group is a named set of in-scope questions; a stranger set holds out-of-scope ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scripts.datasets.attributions import origin
from scripts.router_evaluation import metrics as metrics
from scripts.router_evaluation.metrics import Estimate
from scripts.router_evaluation.questions import Item, Scored, together

EXAM = "CasiMedicos"  # exam vignettes: a set of their own
LENGTHS = (5, 15, 40, 100)  # words; the last bucket is open
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
Groups = list[tuple[str, Scored]]


@dataclass(frozen=True, slots=True)
class Routing:
    """Which specialist, on one group."""

    group: str
    n: int
    accuracy: Estimate
    macro_f1: Estimate
    coverage: Estimate
    accuracy_when_sure: Estimate
    baselines: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]  # router minus baseline, paired


def routing(name: str, scored: Scored, seed: int) -> Routing:
    correct = scored.correct
    right = {label: given == scored.truth for label, given in scored.baselines.items()}
    return Routing(
        group=name,
        n=len(scored.items),
        accuracy=metrics.share(correct, seed=seed),
        macro_f1=metrics.macro_f1(scored.truth, scored.predicted, seed=seed),
        coverage=metrics.share(scored.named, seed=seed),
        accuracy_when_sure=metrics.share_within(correct, scored.named, seed=seed),
        baselines={label: metrics.share(hits, seed=seed) for label, hits in right.items()},
        gains={
            label: metrics.difference(correct, hits, seed=seed) for label, hits in right.items()
        },
    )


def validation_groups(validation: Scored) -> Groups:
    """English, French and the exam vignettes apart."""
    inside = validation.inside
    exam = _where(inside, lambda item: origin(item.source) == EXAM)
    rest = _where(inside, lambda item: origin(item.source) != EXAM)
    return _not_empty(
        [
            ("English", rest.where(lang="en")),
            ("French (HPO)", rest.where(lang="fr")),
            ("exam vignettes, English", exam.where(lang="en")),
            ("exam vignettes, French", exam.where(lang="fr")),
        ]
    )


def written_groups(scored: Scored) -> Groups:
    """Plain questions and vignettes, English and French."""
    names = {"en": "English", "fr": "French"}
    return _not_empty(
        [
            (f"{kind}, {names[lang]}", scored.inside.where(kind=kind, lang=lang))
            for kind in ("plain", "vignette")
            for lang in names
        ]
    )


def by_source(scored: Scored) -> Groups:
    inside = scored.inside
    sources = sorted({item.source for item in inside.items})
    return [(source, inside.where(source=source)) for source in sources]


def by_length(scored: Scored) -> Groups:
    """Buckets of words, blanks between them."""
    found = []
    for low, high in zip((0, *LENGTHS), (*LENGTHS, None), strict=True):
        name = f"{low + 1}-{high} words" if high else f"over {low} words"

        def belongs(item: Item, low: int = low, high: int | None = high) -> bool:
            return low < len(item.text.split()) and (high is None or len(item.text.split()) <= high)

        found.append((name, _where(scored.inside, belongs)))
    return _not_empty(found)


def recalls(scored: Scored, labels: Sequence[str], seed: int) -> dict[str, Estimate]:
    """Of each label, over the questions of that label."""
    inside = scored.inside
    return {
        label: metrics.share(inside.correct[inside.truth == label], seed=seed) for label in labels
    }


@dataclass(frozen=True, slots=True)
class Calibration:
    group: str
    ece: Estimate
    confidence: float  # mean
    accuracy: float


def calibration(name: str, scored: Scored, seed: int) -> Calibration:
    return Calibration(
        group=name,
        ece=metrics.ece(scored.confidence, scored.correct, seed=seed),
        confidence=float(scored.confidence.mean()),
        accuracy=float(scored.correct.mean()),
    )


def selective(scored: Scored, seed: int) -> dict[float, Estimate]:
    """Coverage -> accuracy on the most confident share."""
    return {
        coverage: metrics.selective_accuracy(scored.confidence, scored.correct, coverage, seed=seed)
        for coverage in COVERAGES
    }


@dataclass(frozen=True, slots=True)
class Separation:
    """In-scope questions of one set against strangers of one kind."""

    inside: str
    num_inside: int
    strangers: str
    auroc: Estimate
    false_positives: Estimate


def separation(inside: tuple[str, Scored], strangers: tuple[str, Scored], seed: int) -> Separation:
    scores = inside[1].in_scope, strangers[1].in_scope
    return Separation(
        inside=inside[0],
        num_inside=len(scores[0]),
        strangers=strangers[0],
        auroc=metrics.between(metrics.area, *scores, seed=seed),
        false_positives=metrics.between(metrics.false_positives, *scores, seed=seed),
    )


def stranger_groups(name: str, scored: Scored) -> Groups:
    """Out-of-scope questions by kind: far and near misses of ours, others by their data set."""
    outside = scored.outside

    def kind_of(item: Item) -> str:
        ours = {"far": "far", "near_miss": "near misses"}
        return ours.get(item.kind, origin(item.source))

    kinds = np.array([kind_of(item) for item in outside.items], dtype=np.str_)
    return [
        (f"{kind} ({name})", outside.pick(kinds == kind)) for kind in sorted(set(kinds.tolist()))
    ]


def by_language(groups: Groups) -> Groups:
    """Each group, followed by its English and French questions where it has both."""
    found = []
    for name, scored in groups:
        found.append((name, scored))
        parts = [(f"{name}, {lang}", scored.where(lang=lang)) for lang in ("en", "fr")]
        if all(part.items for _, part in parts):
            found += parts
    return found


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What happens at the artefact's own threshold; shares of the group's questions."""

    group: str
    kept: Estimate
    to_a_specialist: Estimate


def at_threshold(name: str, scored: Scored, min_in_scope: float, seed: int) -> AtThreshold:
    return AtThreshold(
        group=name,
        kept=metrics.share(scored.in_scope >= min_in_scope, seed=seed),
        to_a_specialist=metrics.share(scored.named, seed=seed),
    )


@dataclass(frozen=True, slots=True)
class Perturbed:
    """One set under one perturbation, against the same questions as they are."""

    group: str
    perturbation: str
    num_changed: int
    accuracy: Estimate
    lost: Estimate  # share of the questions; negative: gained


def perturbed_figures(
    group: str, name: str, before: Scored, after: Scored, num_changed: int, seed: int
) -> Perturbed:
    return Perturbed(
        group=group,
        perturbation=name,
        num_changed=num_changed,
        accuracy=metrics.share(after.correct, seed=seed),
        lost=metrics.difference(before.correct, after.correct, seed=seed),
    )


def most_confident_errors(scored: Scored, count: int) -> list[tuple[str, str, str, float]]:
    """(id, its specialty, the router's, probability), the most confident first."""
    inside = scored.inside
    wrong = np.flatnonzero(~inside.correct)
    order = sorted(wrong.tolist(), key=lambda at: (-inside.confidence[at], inside.items[at].id))
    return [
        (
            inside.items[at].id,
            inside.items[at].specialty,
            str(inside.predicted[at]),
            float(inside.confidence[at]),
        )
        for at in order[:count]
    ]


def both(first: Scored, second: Scored) -> Scored:
    return together(first, second).inside


def _where(scored: Scored, belongs: Callable[[Item], bool]) -> Scored:
    return scored.pick(np.array([belongs(item) for item in scored.items], dtype=bool))


def _not_empty(groups: Groups) -> Groups:
    return [(name, scored) for name, scored in groups if scored.items]
