"""The strict experiment: an artefact that saw neither the held-out names nor whole sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.classifier import Classifier
from scripts.router_evaluation import figures, groups
from scripts.router_evaluation.baselines import ALL_TEXTS, PUBLIC, Baseline
from scripts.router_evaluation.figures import Calibration, Routing
from scripts.router_evaluation.questions import check_labels, read_folder
from scripts.router_evaluation.scoring import Scored, score


@dataclass(frozen=True, slots=True)
class Strict:
    """The figures of the strict artefact; `routing` has the keys "validation" and "held out"."""

    version: str
    hold_out: tuple[str, ...]
    unseen_names: bool
    origin: str
    routing: Mapping[str, Sequence[Routing]]
    calibration: Sequence[Calibration]


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
