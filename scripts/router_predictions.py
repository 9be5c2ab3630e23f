"""What a router says of each question, as arrays."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from router.artefact import MANIFEST
from router.classifier import Classification, Classifier
from router.policy import decide
from scripts.router_questions import Baseline, Folder, Item
from scripts.training_data import DataError

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
    manifest: dict[str, Any] = json.loads((model / MANIFEST).read_text(encoding="utf-8"))
    trained_on = (manifest.get("data") or {}).get("sha256")
    if trained_on is None:
        return "the artefact does not say which data it was trained on"
    if trained_on != folder.sha256:
        raise DataError(
            f"--data {data}: its questions have sha256 {folder.sha256[:12]}, and the artefact "
            f"{model} was trained on {trained_on[:12]}: name the folder that train_router read"
        )
    return "the artefact was trained on this folder"
