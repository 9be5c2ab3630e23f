"""Add a specialty to a trained router without the questions that it was trained on.

The artefact keeps the features of its head and validation examples, which hold none of their words.
The new questions get features from the same encoder and n-grams, and one column is fitted on all of
them (added.py); the rest of the head stays. What the old specialties' stored validation examples
are answered with, thresholds applied, is compared before and after. Needs scikit-learn.
"""

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router.artefact import (
    BUILT_IN,
    FEATURES,
    LABEL_THRESHOLDS,
    MANIFEST,
    WEIGHTS,
    artefact_error,
    load_artefact,
    read_arrays,
    read_manifest,
)
from router.classifier import Classifier
from router.preparation.prepare import prepared_text
from router.text import clean, words_of
from router.training.added import AddedLabel, add_label
from router.training.examples import OUT_OF_SCOPE
from router.training.feature_set import FeatureSet, restored, stored
from router.training.head import recalls
from router.training.outcomes import Outcomes, outcomes
from router.training.trained import Trained, head_arrays, rounded

MIN_QUESTIONS = 30
NUM_FOLDS = 10  # of the new questions: each is scored by a column fitted without its fold
MAX_LOSS = 0.02  # of an old specialty's recall, thresholds applied
MAX_WRONG = 0.01  # of the old validation examples: more that are sent to a wrong specialist
MIN_RECALL = 0.4  # of the new specialty, thresholds applied
MAX_DOUBLINGS = 4.0  # of the questions, when guessing how many more are needed
LABEL = r"[a-z][a-z0-9_]{1,49}"


@dataclass(frozen=True, slots=True)
class Extension:
    """The artefact with the new label, and what it does after the thresholds.

    Attributes:
        num_questions: of the label, earlier ones included.
        threshold: of the label.
        recall: of the label, each question answered by a column that was fitted without it.
        num_needed: more questions that would reach MIN_RECALL, guessed from what the last doubling
            gained; 0 if it is reached.
        old_before, old_after: the stored validation examples of the old labels and out of scope;
            of a label that was added earlier, the questions that it was fitted on.
    """

    trained: Trained
    label: str
    num_questions: int
    threshold: float
    recall: float
    num_needed: int
    old_before: Outcomes
    old_after: Outcomes

    @property
    def losses(self) -> dict[str, float]:
        """Return the old labels that lost more than MAX_LOSS of their recall, and how much."""
        return self.old_after.lost_recall(self.old_before, MAX_LOSS)

    @property
    def num_more_wrong(self) -> int:
        """Return how many more of the old examples are sent to a wrong specialist."""
        return self.old_after.num_wrong - self.old_before.num_wrong

    @property
    def harms(self) -> list[str]:
        """Return what the old labels lose beyond the bounds, one line for each."""
        found = [
            f"recall lost by {name} {value:.3f}, at most {MAX_LOSS} is allowed"
            for name, value in self.losses.items()
        ]
        count = len(self.old_before.labels)
        allowed = int(MAX_WRONG * count)
        if self.num_more_wrong > allowed:
            found.append(
                f"{self.num_more_wrong} more of {count} stored questions are sent to a wrong "
                f"specialist, at most {allowed} are allowed"
            )
        return found


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
    known = restored(read_arrays(directory, manifest, FEATURES), old_labels)
    fresh = _fresh(Classifier(artefact), label, unique)
    features = stored(_weighted(known.joined(fresh), label), labels)
    examples = restored(features, labels)  # the column is fitted on what is stored
    added = add_label(
        artefact.head, artefact.thresholds, examples, labels, label, min_recall=MIN_RECALL
    )
    by_label = {**artefact.thresholds.by_label, label: added.threshold}
    thresholds = dataclasses.replace(artefact.thresholds, by_label=by_label)
    num_questions = int((examples.labels == label).sum())
    validation = rounded(recalls(added.head, examples, labels) | {label: added.recall})
    changed = {
        **{key: value for key, value in manifest.items() if key not in ("version", "files")},
        "specialties": labels,
        LABEL_THRESHOLDS: by_label,
        "validation_recall": validation,
        "added": {**manifest.get("added", {}), label: len(unique)},
        "generic": _without(manifest["generic"], unique),
    }
    is_built_in = manifest["encoder"]["name"] == BUILT_IN
    earlier = np.isin(examples.labels, sorted({*artefact.thresholds.by_label} - {label}))
    scored = examples.pick(examples.is_validation | earlier)
    return Extension(
        trained=Trained(
            weights=read_arrays(directory, manifest, WEIGHTS) | head_arrays(added.head),
            features=features,
            manifest=changed,
            encoder_dir=directory if is_built_in else None,
        ),
        label=label,
        num_questions=num_questions,
        threshold=added.threshold,
        recall=added.recall,
        num_needed=_num_needed(num_questions, added),
        old_before=outcomes(artefact.head, artefact.thresholds, scored, old_labels),
        old_after=outcomes(added.head, thresholds, scored, labels),
    )


def _num_needed(count: int, added: AddedLabel) -> int:
    """Return how many more questions reach MIN_RECALL, if each doubling gains what the last did."""
    missing = MIN_RECALL - added.recall
    if missing <= 0:
        return 0
    gain = max(added.recall - added.half_recall, missing / MAX_DOUBLINGS)
    return int(np.ceil(count * (2 ** (missing / gain) - 1) / 10) * 10)


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


def _fresh(classifier: Classifier, label: str, questions: Sequence[str]) -> FeatureSet:
    """Return the features of the new questions; the rank of their hashes chooses the fold."""
    hashes = np.array([zlib.crc32(q.encode()) for q in questions])
    ranks = hashes.argsort().argsort()
    return FeatureSet(
        features=classifier.features(questions),
        labels=np.array([label] * len(questions)),
        weights=np.ones(len(questions)),
        folds=ranks % NUM_FOLDS,
        is_validation=np.zeros(len(questions), dtype=bool),
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


def _without(generic: Mapping[str, Sequence[str]], questions: Sequence[str]) -> dict[str, Any]:
    """Return the generic words without those that most questions of the new specialty have."""
    found = ({w.normal for w in words_of(prepared_text(question))} for question in questions)
    counted = Counter(word for words in found for word in words)
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
