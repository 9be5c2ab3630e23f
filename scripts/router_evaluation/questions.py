"""The questions that a router is evaluated on, and the baselines that learn beside it.

Scored are the questions (kind "question") of the splits validation and held_out of a folder of
prepare_router_dataset, and our own development and test sets. A question that also stands in the
training texts, whatever its case, accents and punctuation, is left out and counted.

What a router says of each question, as arrays.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from router.artefact import MANIFEST as ARTEFACT_MANIFEST
from router.classifier import Classifier
from router.features import words_of
from router.policy import Classification, decide
from router.training.examples import OUT_OF_SCOPE
from scripts.datasets.record import DataError, read_jsonl
from scripts.router.dataset import MANIFEST, QUESTIONS

TRAINING = ("encoder", "head")
SCORED = ("validation", "held_out")
FOLLOW_UP = "follow_up"
OURS = ("written", "glossary")  # sources that we wrote
# What a baseline learns from -> its name in the report.
PUBLIC, ALL_TEXTS = "baseline", "baseline, all texts"
_FIELDS = ("id", "input", "specialty", "lang", "source", "split", "kind")


@dataclass(frozen=True, slots=True)
class Item:
    """A labelled text. `kind` is of the data folder (question, term, passage) or of our own sets
    (plain, vignette, far, near_miss, follow_up)."""

    id: str
    text: str
    specialty: str
    lang: str
    source: str
    split: str
    kind: str

    @property
    def is_inside(self) -> bool:
        return self.specialty != OUT_OF_SCOPE


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of prepare_router_dataset. `left_out` counts copies of training texts by split."""

    training: tuple[Item, ...]
    scored: dict[str, tuple[Item, ...]]
    left_out: dict[str, int]
    folded: frozenset[str]  # the training texts, for `without_copies`
    sha256: str
    hold_out: tuple[str, ...]
    unseen_names: bool


def read_folder(folder: Path) -> Folder:
    """
    Raises:
        DataError: not a folder of prepare_router_dataset, or a line is malformed.
    """
    for name in (QUESTIONS, MANIFEST):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: no {name} in it; prepare_router_dataset writes it")
    rows = [_item(row, number) for number, row in read_jsonl(folder / QUESTIONS)]
    training = tuple(row for row in rows if row.split in TRAINING)
    folded = frozenset(fold(row.text) for row in training)
    scored, left_out = {}, {}
    for split in SCORED:
        questions = [row for row in rows if row.split == split and row.kind == "question"]
        scored[split], left_out[split] = without_copies(questions, folded)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return Folder(
        training=training,
        scored=scored,
        left_out=left_out,
        folded=folded,
        sha256=str(manifest["sha256"]),
        hold_out=tuple(manifest["hold_out"]),
        unseen_names=bool(manifest["unseen_names"]),
    )


def _item(row: dict[str, Any], number: int) -> Item:
    missing = [name for name in _FIELDS if not isinstance(row.get(name), str)]
    if missing:
        raise DataError(f"{QUESTIONS}, line {number}: {', '.join(missing)} must be texts")
    if row["split"] not in (*TRAINING, *SCORED):
        raise DataError(
            f"{QUESTIONS}, line {number}: split {row['split']!r}; expected one of "
            f"{', '.join((*TRAINING, *SCORED))}"
        )
    id_, text, specialty, lang, source, split, kind = (row[name] for name in _FIELDS)
    return Item(id_, text, specialty, lang, source, split, kind)


def read_written(path: Path) -> list[Item]:
    """One of our own sets; an id is the file's name and the line.

    Raises:
        DataError: no such file, or a line is malformed.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    found = []
    for number, row in read_jsonl(path):
        missing = [name for name in ("input", "specialty", "lang", "kind") if not row.get(name)]
        if missing:
            raise DataError(f"{path.name}, line {number}: no {', '.join(missing)}")
        id_ = f"{path.stem}-{number}"
        found.append(
            Item(id_, row["input"], row["specialty"], row["lang"], path.stem, "", row["kind"])
        )
    return found


def fold(text: str) -> str:
    """Without case, accents and punctuation, so that a copy is found behind them."""
    return " ".join(word.normal for word in words_of(text))


def without_copies(
    questions: Iterable[Item], folded: frozenset[str]
) -> tuple[tuple[Item, ...], int]:
    """(questions that are in no training text word for word, how many were left out)."""
    given = list(questions)
    kept = tuple(item for item in given if fold(item.text) not in folded)
    return kept, len(given) - len(kept)


def check_labels(items: Iterable[Item], specialties: Sequence[str], where: str) -> None:
    """
    Raises:
        DataError: a question has a label that the artefact does not know.
    """
    known = {*specialties, OUT_OF_SCOPE}
    unknown = Counter(item.specialty for item in items if item.specialty not in known)
    if unknown:
        raise DataError(
            f"{where}: labels that the artefact does not know: {', '.join(sorted(unknown))}; add "
            "them to it (scripts.add_specialty), or leave these questions out"
        )


def training_of(name: str, training: Sequence[Item]) -> list[Item]:
    """What a baseline is fitted on: in-scope texts, of public questions alone or of everything."""
    inside = [item for item in training if item.is_inside]
    if name == ALL_TEXTS:
        return inside
    return [item for item in inside if item.kind == "question" and item.source not in OURS]


class Baseline:
    """Word TF-IDF + logistic regression (scikit-learn, sublinear term frequency)."""

    def __init__(self, name: str, training: Sequence[Item]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self.name = name
        fitted_on = training_of(name, training)
        self.num_texts = len(fitted_on)
        labels = [item.specialty for item in fitted_on]
        if len(set(labels)) < 2:
            raise DataError(f"{name}: fewer than two specialties to learn in the training split")
        self._model = make_pipeline(
            TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000)
        )
        self._model.fit([item.text for item in fitted_on], labels)

    def predict(self, items: Sequence[Item]) -> npt.NDArray[np.str_]:
        """(Q,) labels."""
        if not items:
            return np.array([], dtype=np.str_)
        return np.asarray(self._model.predict([item.text for item in items]), dtype=np.str_)


CHUNK = 64  # questions of one call, so that the progress bar moves
Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.str_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """Q questions and the router's word on each, (Q,).

    Attributes:
        predicted: the most likely specialty.
        confidence: its calibrated probability.
        in_scope: the calibrated probability of a question for a clinic.
        named: the policy names a specialist, given an adapter for every specialty.
        has_signal: the question has words of its own.
        baselines: name -> the specialty that it predicts.
    """

    items: tuple[Item, ...]
    predicted: Texts
    confidence: Floats
    in_scope: Floats
    named: Bools
    has_signal: Bools
    baselines: Mapping[str, Texts] = field(default_factory=dict)

    @property
    def truth(self) -> Texts:
        return np.array([item.specialty for item in self.items], dtype=np.str_)

    @property
    def correct(self) -> Bools:
        return np.asarray(self.predicted == self.truth)

    @property
    def inside(self) -> "Scored":
        return self.pick(np.array([item.is_inside for item in self.items], dtype=bool))

    @property
    def outside(self) -> "Scored":
        return self.pick(np.array([not item.is_inside for item in self.items], dtype=bool))

    def pick(self, mask: Bools) -> "Scored":
        return Scored(
            items=tuple(item for item, kept in zip(self.items, mask, strict=True) if kept),
            predicted=self.predicted[mask],
            confidence=self.confidence[mask],
            in_scope=self.in_scope[mask],
            named=self.named[mask],
            has_signal=self.has_signal[mask],
            baselines={name: labels[mask] for name, labels in self.baselines.items()},
        )

    def where(self, **wanted: str) -> "Scored":
        """The questions whose fields have these values: `where(lang="fr", kind="plain")`."""
        return self.pick(
            np.array(
                [all(getattr(item, k) == v for k, v in wanted.items()) for item in self.items],
                dtype=bool,
            )
        )


def together(first: Scored, second: Scored) -> Scored:
    """Both sets, with the baselines that both have."""
    names = first.baselines.keys() & second.baselines.keys()
    return Scored(
        items=first.items + second.items,
        predicted=np.concatenate([first.predicted, second.predicted]),
        confidence=np.concatenate([first.confidence, second.confidence]),
        in_scope=np.concatenate([first.in_scope, second.in_scope]),
        named=np.concatenate([first.named, second.named]),
        has_signal=np.concatenate([first.has_signal, second.has_signal]),
        baselines={
            name: np.concatenate([first.baselines[name], second.baselines[name]]) for name in names
        },
    )


def score(
    classifier: Classifier,
    items: Sequence[Item],
    title: str,
    *,
    baselines: Sequence[Baseline] = (),
    texts: Sequence[str] | None = None,
) -> Scored:
    """Run the router over questions, each a conversation of one turn.

    Args:
        title: of the progress bar.
        texts: what to send instead of the items' own texts, in their order.
    """
    sent = [item.text for item in items] if texts is None else list(texts)
    results: list[Classification] = []
    with tqdm(total=len(sent), desc=title, unit="question") as bar:
        for start in range(0, len(sent), CHUNK):
            chunk = sent[start : start + CHUNK]
            results += classifier.classify([[text] for text in chunk])
            bar.update(len(chunk))
    tops = [max(r.last.probabilities.items(), key=lambda item: item[1]) for r in results]
    return Scored(
        items=tuple(items),
        predicted=np.array([name for name, _ in tops], dtype=np.str_),
        confidence=np.array([value for _, value in tops], dtype=np.float64),
        in_scope=np.array([r.last.in_scope for r in results], dtype=np.float64),
        named=np.array([_is_named(r, classifier) for r in results], dtype=bool),
        has_signal=np.array([r.last.has_signal for r in results], dtype=bool),
        baselines={baseline.name: baseline.predict(items) for baseline in baselines},
    )


def _is_named(classification: Classification, classifier: Classifier) -> bool:
    route = decide(
        classification,
        thresholds=classifier.thresholds,
        adapters={name: name for name in classifier.specialties},
        base_languages=("en", "fr"),
    )
    return route.specialty is not None


def check_origin(model: Path, folder: Folder, data: Path) -> str:
    """How artefact and data belong together, for the report.

    Raises:
        DataError: the artefact was trained on other data, so its training may hold what is scored.
    """
    manifest: dict[str, Any] = json.loads((model / ARTEFACT_MANIFEST).read_text(encoding="utf-8"))
    trained_on = (manifest.get("data") or {}).get("sha256")
    if trained_on is None:
        return "the artefact does not say which data it was trained on"
    if trained_on != folder.sha256:
        raise DataError(
            f"--data {data}: its questions have sha256 {folder.sha256[:12]}, and the artefact "
            f"{model} was trained on {trained_on[:12]}: name the folder that train_router read"
        )
    return "the artefact was trained on this folder"
