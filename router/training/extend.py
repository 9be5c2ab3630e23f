"""Add a specialty to a trained router without the questions that it was trained on.

The artefact keeps the features of its head and validation examples, which hold none of their words.
The new questions get features from the same encoder and n-grams, the head is fitted and calibrated
again on all of them, and the old specialties' recall on the stored validation examples is compared
before and after. Needs scikit-learn.
"""

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router.artefact import (
    BUILT_IN,
    FEATURES,
    MANIFEST,
    WEIGHTS,
    artefact_error,
    load_artefact,
    read_arrays,
    read_manifest,
)
from router.classifier import Classifier
from router.text import clean, words_of
from router.training.examples import OUT_OF_SCOPE, Recipe
from router.training.feature_set import FeatureSet, restored, stored
from router.training.head import fit_head, recalls
from router.training.trained import Trained, head_arrays, head_entries, rounded

MIN_QUESTIONS = 30
HELD_OUT_PERCENT = 25  # of the new questions: they validate the new specialty
MAX_LOSS = 0.02  # of an old specialty's recall
LABEL = r"[a-z][a-z0-9_]{1,49}"


@dataclass(frozen=True, slots=True)
class Extension:
    """The artefact with the new label, and each label's recall on validation examples."""

    trained: Trained
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def losses(self) -> dict[str, float]:
        """Return the old labels that lost more than MAX_LOSS, and how much."""
        lost = {label: self.before[label] - self.after[label] for label in self.before}
        return {label: value for label, value in lost.items() if value > MAX_LOSS}


def extend(directory: Path, label: str, questions: Sequence[str]) -> Extension:
    """Add `label`, or give more questions to a label that was added before.

    Args:
        directory: an artefact with its features.
        questions: at least MIN_QUESTIONS different ones of the new specialty.

    Raises:
        ArtefactError: the artefact is damaged or has no features.
        ValueError: too few questions, `out_of_scope`, or a label that the n-grams know.
    """
    manifest = read_manifest(directory / MANIFEST)
    _check_label(directory, label, manifest)
    unique = _different(label, questions)
    artefact = load_artefact(directory)
    old_labels = list(manifest["specialties"])
    labels = sorted({*old_labels, label})
    recipe = _recipe(manifest)
    known = restored(read_arrays(directory, manifest, FEATURES), old_labels)
    fresh = _fresh(Classifier(artefact), label, unique, recipe)
    features = stored(_weighted(known.joined(fresh), label), labels)
    examples = restored(features, labels)  # the head is fitted on what is stored
    fitted = fit_head(examples, labels, recipe)
    after = recalls(fitted.head, examples, labels)
    changed = {
        **{key: value for key, value in manifest.items() if key not in ("version", "files")},
        "specialties": labels,
        **head_entries(fitted),
        "validation_recall": rounded(after),
        "added": {**manifest.get("added", {}), label: len(unique)},
        "generic": _without(manifest["generic"], unique),
    }
    is_built_in = manifest["encoder"]["name"] == BUILT_IN
    return Extension(
        trained=Trained(
            weights=read_arrays(directory, manifest, WEIGHTS) | head_arrays(fitted.head),
            features=features,
            manifest=changed,
            encoder_dir=directory if is_built_in else None,
        ),
        before=recalls(artefact.head, known, old_labels),
        after=after,
    )


def _check_label(directory: Path, label: str, manifest: Mapping[str, Any]) -> None:
    if label == OUT_OF_SCOPE:
        raise ValueError(f"label {label!r}: it stands for questions without a specialty")
    if FEATURES not in manifest["files"]:
        raise artefact_error(directory / FEATURES, "it is missing, so no specialty can be added")
    if label in manifest["ngram_specialties"]:
        raise ValueError(
            f"label {label!r}: the router has it already: more questions for it need training "
            "from the data (scripts/train_router.py)"
        )


def _different(label: str, questions: Sequence[str]) -> list[str]:
    unique = sorted({" ".join(clean(q).split()) for q in questions} - {""})
    if len(unique) < MIN_QUESTIONS:
        raise ValueError(
            f"label {label!r}: {len(unique)} different questions; at least {MIN_QUESTIONS} are "
            "needed to fit and to check a specialty"
        )
    return unique


def _fresh(
    classifier: Classifier, label: str, questions: Sequence[str], recipe: Recipe
) -> FeatureSet:
    """Return the features of the new questions; their hashes choose folds and validation."""
    hashes = np.array([zlib.crc32(q.encode()) for q in questions])
    ranks = hashes.argsort().argsort()  # by rank, so that validation is not empty
    return FeatureSet(
        features=classifier.features(questions),
        labels=np.array([label] * len(questions)),
        weights=np.ones(len(questions)),
        folds=hashes % recipe.num_folds,
        is_validation=ranks < len(questions) * HELD_OUT_PERCENT // 100,
    )


def _weighted(examples: FeatureSet, label: str) -> FeatureSet:
    """Weight the label's examples, earlier ones included, so that together they equal the median.

    Each weighs at most the 99th percentile of the others' weights.
    """
    ours, training = examples.labels == label, ~examples.is_validation
    others = examples.weights[training & ~ours]
    names = examples.labels[training & ~ours]
    median = float(np.median([others[names == name].sum() for name in set(names.tolist())]))
    weight = min(median / int((training & ours).sum()), float(np.quantile(others, 0.99)))
    return dataclasses.replace(examples, weights=np.where(ours, weight, examples.weights))


def _recipe(manifest: Mapping[str, Any]) -> Recipe:
    """Return the artefact's recipe, so that only the new questions change the head."""
    names = {field.name for field in dataclasses.fields(Recipe)}
    given = {key: value for key, value in manifest["recipe"].items() if key in names}
    pairs = {
        key: tuple((str(name), float(weight)) for name, weight in given[key])
        for key in ("source_weights", "kind_weights")
        if key in given
    }
    return Recipe(**{**given, **pairs})


def _without(generic: Mapping[str, Sequence[str]], questions: Sequence[str]) -> dict[str, Any]:
    """Return the generic words without those that most questions of the new specialty have."""
    counted: dict[str, int] = {}
    for question in questions:
        for word in {w.normal for w in words_of(question)}:
            counted[word] = counted.get(word, 0) + 1
    frequent = {word for word, count in counted.items() if count > len(questions) / 2}
    return {code: [w for w in words if w not in frequent] for code, words in generic.items()}


def read_questions(file: Path) -> list[str]:
    """Read the questions of a .txt file, one a line, or of a .jsonl file, field `input`.

    Raises:
        ValueError: the file is of another kind or encoding, or a line is malformed (names it).
    """
    if file.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{file.name}: expected a .txt file (one question a line) or a .jsonl")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name}: not UTF-8 text ({error.reason})") from None
    if file.suffix == ".txt":
        return [line for line in lines if line.strip()]
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["input"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file.name}, line {number}: no JSON object with 'input'") from None
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{file.name}, line {number}: 'input' must be a text")
        found.append(text)
    return found
