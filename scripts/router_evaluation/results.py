"""All figures of one evaluation, computed from artefacts and question sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.classifier import Classifier
from scripts.router_evaluation import figures, groups
from scripts.router_evaluation.baselines import ALL_TEXTS, PUBLIC, Baseline
from scripts.router_evaluation.figures import (
    AtThreshold,
    Calibration,
    ConfidentError,
    Perturbed,
    Routing,
    Selective,
    Separation,
)
from scripts.router_evaluation.groups import Groups
from scripts.router_evaluation.metrics import Estimate, confusion, share
from scripts.router_evaluation.perturbations import perturbed_figures
from scripts.router_evaluation.questions import check_labels, read_folder, read_written
from scripts.router_evaluation.scoring import Scored, score, together
from scripts.router_evaluation.sets import Sets, scored_sets
from scripts.router_evaluation.speed import Speed, measure

NUM_ERRORS = 10


@dataclass(frozen=True, slots=True)
class Strict:
    """The figures of an artefact that saw neither the held-out names nor whole sources.

    `routing` has the keys "validation" and "held out".
    """

    version: str
    hold_out: tuple[str, ...]
    unseen_names: bool
    origin: str
    routing: Mapping[str, Sequence[Routing]]
    calibration: Sequence[Calibration]


@dataclass(frozen=True, slots=True)
class Results:
    """The figures of the report; the report's template names each field."""

    version: str
    thresholds: Mapping[str, float]
    labels: tuple[str, ...]
    origin: str
    data_sha256: str
    left_out: Mapping[str, int]  # as in Sets
    num_baseline: Mapping[str, int]  # as in Sets
    routing: Mapping[str, Sequence[Routing]]
    recalls: Mapping[str, Mapping[str, Estimate]]
    confusion: Mapping[str, Sequence[Sequence[int]]]  # set -> counts (S, S), the truth in rows
    calibration: Sequence[Calibration]
    selective: Sequence[Selective]
    separation: Sequence[Separation]
    at_threshold: Sequence[AtThreshold]
    perturbed: Sequence[Perturbed]
    follow_ups: Estimate
    errors: Sequence[ConfidentError]
    speed: Speed
    strict: Strict | None


def evaluate(
    data: Path,
    model: Path,
    written: Mapping[str, Path],
    *,
    strict: tuple[Path, Path] | None,
    seed: int,
) -> tuple[Results, Sets]:
    """Score all question sets and compute the figures.

    Args:
        data: folder of prepare_router_dataset that the artefact was trained on.
        written: our own sets, "development" and "test".
        strict: (artefact, data folder) of the strict experiment.

    Raises:
        DataError, ArtefactError: an input cannot be read, is too small, or does not fit another.
    """
    folder = read_folder(data, model)
    given = {name: read_written(path) for name, path in written.items()}
    strict_part = evaluate_strict(*strict, seed) if strict else None
    classifier = Classifier.load(model)
    sets = scored_sets(classifier, folder, given)
    speed = measure(classifier, model, [q.text for q in sets.test.questions], seed)
    return _results(classifier, sets, speed, strict_part, seed), sets


def evaluate_strict(model: Path, data: Path, seed: int) -> Strict:
    """Score the strict artefact on the folder that it was trained on.

    Raises:
        DataError, ArtefactError: an input cannot be read, or does not fit the other.
    """
    folder = read_folder(data, model)
    classifier = Classifier.load(model)
    baselines = [Baseline(name, folder.training) for name in (PUBLIC, ALL_TEXTS)]
    scored: dict[str, Scored] = {}
    for split, questions in folder.scored.items():
        check_labels(questions, classifier.specialties, split)
        scored[split] = score(classifier, questions, f"strict, {split}", baselines=baselines)
    validation = groups.validation_groups(scored["validation"])
    sources = groups.by_source(scored["held_out"])
    if len(sources) > 1:
        sources.append(("all held-out sources", scored["held_out"].inside))
    return Strict(
        version=classifier.version,
        hold_out=folder.hold_out,
        unseen_names=folder.unseen_names,
        origin=folder.origin,
        routing={
            "validation": [figures.routing(*row, seed) for row in validation],
            "held out": [figures.routing(*row, seed) for row in sources],
        },
        calibration=[figures.calibration(n, s, seed) for n, s in [*validation, *sources]],
    )


def _results(
    classifier: Classifier, sets: Sets, speed: Speed, strict: Strict | None, seed: int
) -> Results:
    calibrated = _calibrated(sets)
    separation, at_threshold = _scope(sets, classifier.thresholds.min_in_scope, seed)
    labels, everything = classifier.specialties, sets.everything
    return Results(
        version=classifier.version,
        thresholds={
            "confidence": classifier.thresholds.min_confidence,
            "margin": classifier.thresholds.min_margin,
            "in scope": classifier.thresholds.min_in_scope,
        },
        labels=labels,
        origin=sets.folder.origin,
        data_sha256=sets.folder.sha256,
        left_out=sets.left_out,
        num_baseline=sets.num_baseline,
        routing=_routing(sets, seed),
        recalls={n: figures.recalls(s, labels, seed) for n, s in everything.items()},
        confusion={  # development has too few questions of a label
            name: confusion(inside.truth, inside.predicted, labels).tolist()
            for name, inside in (("Validation", sets.validation.inside), ("Test", sets.test.inside))
        },
        calibration=[figures.calibration(name, scored, seed) for name, scored in calibrated],
        selective=[figures.selective(name, scored, seed) for name, scored in calibrated],
        separation=separation,
        at_threshold=at_threshold,
        perturbed=perturbed_figures(classifier, sets, seed),
        follow_ups=share(~sets.follow_ups.has_signal, seed=seed),
        errors=_errors(sets),
        speed=speed,
        strict=strict,
    )


def _routing(sets: Sets, seed: int) -> dict[str, list[Routing]]:
    found: dict[str, Groups] = {
        "validation": groups.validation_groups(sets.validation),
        **{name: groups.written_groups(scored) for name, scored in sets.written.items()},
        "source": groups.by_source(sets.validation),
        "held-out sources": groups.by_source(sets.held_out),
        **{f"length, {n}": groups.by_length(scored) for n, scored in sets.everything.items()},
    }
    return {name: [figures.routing(*row, seed) for row in rows] for name, rows in found.items()}


def _calibrated(sets: Sets) -> Groups:
    """Return the groups whose confidence is compared with their accuracy."""
    validation = groups.validation_groups(sets.validation)
    written = {name: scored.inside for name, scored in sets.written.items()}
    found = [(f"validation, {name}", scored) for name, scored in validation]
    found += written.items()
    if all(scored.questions for scored in written.values()):
        found.append((" and ".join(written), together(*written.values())))
    return [(name, scored) for name, scored in found if scored.questions]


def _scope(
    sets: Sets, min_in_scope: float, seed: int
) -> tuple[list[Separation], list[AtThreshold]]:
    insides = [(name, scored.inside) for name, scored in sets.everything.items()]
    outsides = [
        group
        for name, scored in sets.everything.items()
        for group in groups.out_of_scope_groups(name, scored)
    ]
    separation = [
        figures.separation(inside, outside, seed) for inside in insides for outside in outsides
    ]
    at_threshold = [
        figures.at_threshold(name, scored, min_in_scope, seed)
        for name, scored in groups.by_language([*insides, *outsides])
    ]
    return separation, at_threshold


def _errors(sets: Sets) -> list[ConfidentError]:
    """Return no error of the test set: who trains the next router must not learn from them."""
    return [
        error
        for name, scored in sets.everything.items()
        if name != "test"
        for error in figures.most_confident_errors(name, scored, NUM_ERRORS)
    ]
