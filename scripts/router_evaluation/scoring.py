"""Run a router over questions; the results are arrays."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from router.classifier import Classifier
from router.policy import Classification, Route, decide
from scripts.router.dataset import Entry
from scripts.router_evaluation.baselines import Baseline

CHUNK = 64  # questions in one call, so that the progress bar moves
Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.str_]
Floats = npt.NDArray[np.float64]
_ARRAYS = ("predicted", "confidence", "in_scope", "named", "has_signal")  # of Scored, each (Q,)


@dataclass(frozen=True, slots=True)
class Scored:
    """Q questions and the router's result for each; every array is (Q,)."""

    questions: tuple[Entry, ...]
    predicted: Texts  # the most likely specialty
    confidence: Floats  # its calibrated probability
    in_scope: Floats  # calibrated probability that the question is one for a clinic
    named: Bools  # the policy names a specialist, given an adapter for every specialty
    has_signal: Bools  # the question has words that say what it is about
    baselines: Mapping[str, Texts] = field(default_factory=dict)  # name -> what it predicts

    @property
    def truth(self) -> Texts:
        return np.array([question.specialty for question in self.questions], dtype=np.str_)

    @property
    def correct(self) -> Bools:
        return np.asarray(self.predicted == self.truth)

    @property
    def inside(self) -> "Scored":
        return self.filter(lambda question: question.is_inside)

    @property
    def outside(self) -> "Scored":
        return self.filter(lambda question: not question.is_inside)

    def where(self, **wanted: str) -> "Scored":
        """Return the questions whose fields have these values: `where(lang="fr", kind="plain")`."""
        return self.filter(lambda q: all(getattr(q, k) == v for k, v in wanted.items()))

    def filter(self, belongs: Callable[[Entry], bool]) -> "Scored":
        return self.pick(np.array([belongs(question) for question in self.questions], dtype=bool))

    def pick(self, mask: Bools) -> "Scored":
        arrays = {name: getattr(self, name)[mask] for name in _ARRAYS}
        questions = tuple(q for q, kept in zip(self.questions, mask, strict=True) if kept)
        baselines = {name: labels[mask] for name, labels in self.baselines.items()}
        return Scored(questions, **arrays, baselines=baselines)


def together(first: Scored, second: Scored) -> Scored:
    """Return both sets as one, with the baselines that both have."""
    names = first.baselines.keys() & second.baselines.keys()
    sides = (first, second)
    return Scored(
        questions=first.questions + second.questions,
        **{name: np.concatenate([getattr(side, name) for side in sides]) for name in _ARRAYS},
        baselines={n: np.concatenate([side.baselines[n] for side in sides]) for n in names},
    )


def score(
    classifier: Classifier,
    questions: Sequence[Entry],
    title: str,
    *,
    baselines: Sequence[Baseline] = (),
    texts: Sequence[str] | None = None,
) -> Scored:
    """Run the router over questions, each a conversation of one turn.

    Args:
        title: of the progress bar.
        texts: what to send instead of the questions' own texts, in the same order.
    """
    sent = [question.text for question in questions] if texts is None else list(texts)
    results: list[Classification] = []
    with tqdm(total=len(sent), desc=title, unit="question") as bar:
        for start in range(0, len(sent), CHUNK):
            chunk = sent[start : start + CHUNK]
            results += classifier.classify([[text] for text in chunk])
            bar.update(len(chunk))
    tops = [max(r.last.probabilities.items(), key=lambda item: item[1]) for r in results]
    return Scored(
        questions=tuple(questions),
        predicted=np.array([name for name, _ in tops], dtype=np.str_),
        confidence=np.array([value for _, value in tops], dtype=np.float64),
        in_scope=np.array([r.last.in_scope for r in results], dtype=np.float64),
        named=np.array([route_of(r, classifier).specialty is not None for r in results]),
        has_signal=np.array([r.last.has_signal for r in results], dtype=bool),
        baselines={baseline.name: baseline.predict(questions) for baseline in baselines},
    )


def route_of(classification: Classification, classifier: Classifier) -> Route:
    """Return the route, given an adapter for every specialty."""
    return decide(
        classification,
        thresholds=classifier.thresholds,
        adapters={name: name for name in classifier.specialties},
        base_languages=("en", "fr"),
    )
