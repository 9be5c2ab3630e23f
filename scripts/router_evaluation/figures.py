"""The figures of one row of the report, each computed from the scored questions of a group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scripts.router_evaluation import metrics
from scripts.router_evaluation.metrics import Estimate
from scripts.router_evaluation.scoring import Scored

COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True)
class Routing:
    """Which specialist is chosen; `gains` are router minus baseline, paired by question."""

    group: str
    n: int
    accuracy: Estimate
    macro_f1: Estimate
    coverage: Estimate
    accuracy_when_sure: Estimate
    baselines: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]


def routing(group: str, scored: Scored, seed: int) -> Routing:
    correct = scored.correct
    hits = {name: given == scored.truth for name, given in scored.baselines.items()}
    return Routing(
        group=group,
        n=len(scored.questions),
        accuracy=metrics.share(correct, seed=seed),
        macro_f1=metrics.macro_f1(scored.truth, scored.predicted, seed=seed),
        coverage=metrics.share(scored.named, seed=seed),
        accuracy_when_sure=metrics.share_within(correct, scored.named, seed=seed),
        baselines={name: metrics.share(hit, seed=seed) for name, hit in hits.items()},
        gains={name: metrics.difference(correct, hit, seed=seed) for name, hit in hits.items()},
    )


def recalls(scored: Scored, labels: Sequence[str], seed: int) -> dict[str, Estimate]:
    """Return each label's recall, over the questions of that label."""
    correct, truth = scored.inside.correct, scored.inside.truth
    return {label: metrics.share(correct[truth == label], seed=seed) for label in labels}


@dataclass(frozen=True, slots=True)
class Calibration:
    group: str
    ece: Estimate
    confidence: float  # mean
    accuracy: float


def calibration(group: str, scored: Scored, seed: int) -> Calibration:
    error = metrics.ece(scored.confidence, scored.correct, seed=seed)
    return Calibration(group, error, float(scored.confidence.mean()), float(scored.correct.mean()))


@dataclass(frozen=True, slots=True)
class Selective:
    """Accuracy on the most confident share of a group; `accuracies` in the order of COVERAGES."""

    group: str
    n: int
    accuracies: tuple[Estimate, ...]


def selective(group: str, scored: Scored, seed: int) -> Selective:
    confidence, correct = scored.confidence, scored.correct
    found = [metrics.selective_accuracy(confidence, correct, c, seed=seed) for c in COVERAGES]
    return Selective(group, len(correct), tuple(found))


@dataclass(frozen=True, slots=True)
class Separation:
    """In-scope questions of one set against out-of-scope questions of one kind."""

    inside: str
    num_inside: int
    outside: str
    auroc: Estimate
    false_positives: Estimate


def separation(inside: tuple[str, Scored], outside: tuple[str, Scored], seed: int) -> Separation:
    scores = inside[1].in_scope, outside[1].in_scope
    area = metrics.between(metrics.area, *scores, seed=seed)
    false_positives = metrics.between(metrics.false_positives, *scores, seed=seed)
    return Separation(inside[0], len(scores[0]), outside[0], area, false_positives)


@dataclass(frozen=True, slots=True)
class AtThreshold:
    """What the artefact's own threshold does; shares of the group's questions."""

    group: str
    kept: Estimate
    to_a_specialist: Estimate


def at_threshold(group: str, scored: Scored, min_in_scope: float, seed: int) -> AtThreshold:
    kept = metrics.share(scored.in_scope >= min_in_scope, seed=seed)
    return AtThreshold(group, kept, metrics.share(scored.named, seed=seed))


@dataclass(frozen=True, slots=True)
class Perturbed:
    """One group under one perturbation, compared with the same questions unchanged."""

    group: str
    perturbation: str
    num_changed: int  # questions that the perturbation alters
    accuracy: Estimate
    lost: Estimate  # share of the questions; negative where accuracy was gained


@dataclass(frozen=True, slots=True)
class ConfidentError:
    set: str
    id: str
    specialty: str
    predicted: str
    confidence: float


def most_confident_errors(name: str, scored: Scored, count: int) -> list[ConfidentError]:
    """Return the in-scope questions that were routed wrong, the most confident first."""
    inside = scored.inside
    wrong = np.flatnonzero(~inside.correct).tolist()
    order = sorted(wrong, key=lambda at: (-inside.confidence[at], inside.questions[at].id))
    return [
        ConfidentError(
            name,
            inside.questions[at].id,
            inside.questions[at].specialty,
            str(inside.predicted[at]),
            float(inside.confidence[at]),
        )
        for at in order[:count]
    ]
