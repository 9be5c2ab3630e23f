"""All figures of one evaluation, computed from artefacts and question sets."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.classifier import Classifier
from scripts.router_evaluation import figures as figures
from scripts.router_evaluation.figures import (
    AtThreshold,
    Calibration,
    Groups,
    Perturbed,
    Routing,
    Separation,
)
from scripts.router_evaluation.metrics import Estimate, share
from scripts.router_evaluation.perturbations import PERTURBATIONS, perturbed
from scripts.router_evaluation.questions import (
    ALL_TEXTS,
    FOLLOW_UP,
    PUBLIC,
    Baseline,
    Folder,
    Item,
    Scored,
    check_labels,
    check_origin,
    read_folder,
    read_written,
    score,
    without_copies,
)
from scripts.router_evaluation.speed import Speed, measure

NUM_PERTURBED = 300  # validation questions of each language
NUM_ERRORS = 10


@dataclass(frozen=True, slots=True)
class Sets:
    """The scored sets of one artefact; `written` holds the development and the test set."""

    validation: Scored
    held_out: Scored
    written: Mapping[str, Scored]
    follow_ups: Scored


@dataclass(frozen=True, slots=True)
class Strict:
    """An artefact that saw neither the held-out names nor the held-out sources."""

    version: str
    hold_out: tuple[str, ...]
    unseen_names: bool
    origin: str
    routing: Mapping[str, Sequence[Routing]]
    calibration: Sequence[Calibration]


@dataclass(frozen=True, slots=True)
class Results:
    version: str
    thresholds: Mapping[str, float]
    labels: tuple[str, ...]
    origin: str
    data_sha256: str
    left_out: Mapping[str, int]
    num_baseline: Mapping[str, int]  # texts that each baseline was fitted on
    sets: Sets
    routing: Mapping[str, Sequence[Routing]]
    recalls: Mapping[str, Mapping[str, Estimate]]
    calibration: Sequence[Calibration]
    selective: Mapping[str, Mapping[float, Estimate]]
    separation: Sequence[Separation]
    at_threshold: Sequence[AtThreshold]
    perturbed: Sequence[Perturbed]
    follow_ups: Estimate
    errors: Mapping[str, Sequence[tuple[str, str, str, float]]]
    speed: Speed
    strict: Strict | None


def evaluate(
    data: Path,
    model: Path,
    written: Mapping[str, Path],
    *,
    strict: tuple[Path, Path] | None,
    seed: int,
) -> Results:
    """
    Args:
        data: folder of prepare_router_dataset that the artefact was trained on.
        written: our own sets, "development" and "test".
        strict: (artefact, data folder) of the strict experiment.

    Raises:
        DataError, ArtefactError: what cannot be read, does not belong together, or is too small.
    """
    folder = read_folder(data)
    origin = check_origin(model, folder, data)
    given = {name: read_written(path) for name, path in written.items()}
    strict_part = _strict(*strict, seed) if strict else None
    classifier = Classifier.load(model)
    for name, items in {**given, **folder.scored}.items():
        asked = [item for item in items if item.kind != FOLLOW_UP]
        check_labels(asked, classifier.specialties, name)
    sets, left_out, num_baseline = _scored_sets(classifier, folder, given)
    groups = {
        "validation": figures.validation_groups(sets.validation),
        **{name: figures.written_groups(scored) for name, scored in sets.written.items()},
    }
    everything = {"validation": sets.validation, **sets.written}
    routing = {name: _routing(found, seed) for name, found in groups.items()}
    routing |= {
        "source": _routing(figures.by_source(sets.validation), seed),
        "held-out sources": _routing(figures.by_source(sets.held_out), seed),
    }
    routing |= {
        f"length, {name}": _routing(figures.by_length(scored), seed)
        for name, scored in everything.items()
    }
    calibrated = _calibrated(groups["validation"], everything)
    insides = [(name, scored.inside) for name, scored in everything.items()]
    strangers = [
        group
        for name, scored in everything.items()
        for group in figures.stranger_groups(name, scored)
    ]
    min_in_scope = classifier.thresholds.min_in_scope
    return Results(
        version=classifier.version,
        thresholds={
            "confidence": classifier.thresholds.min_confidence,
            "margin": classifier.thresholds.min_margin,
            "in scope": min_in_scope,
        },
        labels=classifier.specialties,
        origin=origin,
        data_sha256=folder.sha256,
        left_out=left_out,
        num_baseline=num_baseline,
        sets=sets,
        routing=routing,
        recalls={
            name: figures.recalls(s, classifier.specialties, seed) for name, s in everything.items()
        },
        calibration=[figures.calibration(name, scored, seed) for name, scored in calibrated],
        selective={name: figures.selective(scored, seed) for name, scored in calibrated},
        separation=[
            figures.separation(inside, group, seed) for inside in insides for group in strangers
        ],
        at_threshold=[
            figures.at_threshold(name, scored, min_in_scope, seed)
            for name, scored in figures.by_language([*insides, *strangers])
        ],
        perturbed=_perturbed(classifier, sets, seed),
        follow_ups=share(~sets.follow_ups.has_signal, seed=seed),
        errors={
            name: figures.most_confident_errors(scored, NUM_ERRORS)
            for name, scored in everything.items()
            if name != "test"  # what is wrong there stays unknown to whoever trains the next one
        },
        speed=measure(classifier, model, [item.text for item in sets.written["test"].items], seed),
        strict=strict_part,
    )


def _scored_sets(
    classifier: Classifier, folder: Folder, given: Mapping[str, Sequence[Item]]
) -> tuple[Sets, dict[str, int], dict[str, int]]:
    baselines = [Baseline(name, folder.training) for name in (PUBLIC, ALL_TEXTS)]
    left_out = {"validation": folder.left_out["validation"]}
    written: dict[str, Scored] = {}
    for name, items in given.items():
        asked = [item for item in items if item.kind != FOLLOW_UP]
        kept, left_out[name] = without_copies(asked, folder.folded)
        written[name] = score(classifier, kept, name, baselines=baselines)
    follow_ups = [item for item in given["development"] if item.kind == FOLLOW_UP]
    sets = Sets(
        validation=score(
            classifier, folder.scored["validation"], "validation", baselines=baselines
        ),
        held_out=score(classifier, folder.scored["held_out"], "held out", baselines=baselines),
        written=written,
        follow_ups=score(classifier, follow_ups, "follow-ups"),
    )
    return sets, left_out, {baseline.name: baseline.num_texts for baseline in baselines}


def _calibrated(validation: Groups, everything: Mapping[str, Scored]) -> Groups:
    """The sets whose confidence is looked at."""
    written = [(name, s.inside) for name, s in everything.items() if name != "validation"]
    found = [(f"validation, {name}", scored) for name, scored in validation]
    found += written
    if len(written) == 2 and all(scored.items for _, scored in written):
        pooled = figures.both(written[0][1], written[1][1])
        found.append((f"{written[0][0]} and {written[1][0]}", pooled))
    return [(name, scored) for name, scored in found if scored.items]


def _routing(groups: Groups, seed: int) -> list[Routing]:
    return [figures.routing(name, scored, seed) for name, scored in groups]


def _perturbed(classifier: Classifier, sets: Sets, seed: int) -> list[Perturbed]:
    generator = random.Random(seed)
    found = []
    for name, scored in (("validation", sets.validation), ("test", sets.written["test"])):
        for lang, title in (("en", "English"), ("fr", "French")):
            items = list(scored.inside.where(lang=lang).items)
            if name == "validation" and len(items) > NUM_PERTURBED:
                items = generator.sample(items, k=NUM_PERTURBED)
            if not items:
                continue
            group = f"{name}, {title}"
            before = score(classifier, items, group)
            for change in PERTURBATIONS:
                texts = [perturbed(item.text, lang, item.id, change, seed) for item in items]
                after = score(classifier, items, f"{group}, {change}", texts=texts)
                changed = sum(text != item.text for text, item in zip(texts, items, strict=True))
                found.append(figures.perturbed_figures(group, change, before, after, changed, seed))
    return found


def _strict(model: Path, data: Path, seed: int) -> Strict:
    folder = read_folder(data)
    origin = check_origin(model, folder, data)
    classifier = Classifier.load(model)
    baselines = [Baseline(name, folder.training) for name in (PUBLIC, ALL_TEXTS)]
    scored: dict[str, Scored] = {}
    for split, items in folder.scored.items():
        check_labels(items, classifier.specialties, split)
        scored[split] = score(classifier, items, f"strict, {split}", baselines=baselines)
    validation = figures.validation_groups(scored["validation"])
    sources = figures.by_source(scored["held_out"])
    if len(sources) > 1:
        sources.append(("all held-out sources", scored["held_out"].inside))
    return Strict(
        version=classifier.version,
        hold_out=folder.hold_out,
        unseen_names=folder.unseen_names,
        origin=origin,
        routing={"validation": _routing(validation, seed), "held out": _routing(sources, seed)},
        calibration=[
            figures.calibration(name, found, seed)
            for name, found in [*validation, *sources]
            if found.items
        ],
    )
