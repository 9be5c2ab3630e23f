"""The scored question sets of the shipped artefact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router.classifier import Classifier
from scripts.router.dataset import Entry
from scripts.router_evaluation.baselines import ALL_TEXTS, PUBLIC, Baseline
from scripts.router_evaluation.questions import FOLLOW_UP, DataFolder, check_labels, without_copies
from scripts.router_evaluation.scoring import Scored, score


@dataclass(frozen=True, slots=True)
class Sets:
    """The scored sets."""

    folder: DataFolder  # where validation and held_out come from
    validation: Scored
    held_out: Scored
    written: Mapping[str, Scored]  # "development" and "test", without copies of training texts
    follow_ups: Scored
    left_out: Mapping[str, int]  # set -> number of copies that were left out
    num_baseline: Mapping[str, int]  # baseline -> number of texts that it was fitted on

    @property
    def test(self) -> Scored:
        return self.written["test"]

    @property
    def everything(self) -> dict[str, Scored]:
        return {"validation": self.validation, **self.written}


def scored_sets(
    classifier: Classifier, folder: DataFolder, given: Mapping[str, Sequence[Entry]]
) -> Sets:
    """Check the labels of all questions, then run the router and the baselines over them.

    Raises:
        DataError: a question has a label that the artefact does not know.
    """
    asked = {name: [q for q in qs if q.kind != FOLLOW_UP] for name, qs in given.items()}
    for name, questions in {**asked, **folder.scored}.items():
        check_labels(questions, classifier.specialties, name)
    baselines = [Baseline(name, folder.training) for name in (PUBLIC, ALL_TEXTS)]
    left_out = {"validation": folder.left_out["validation"]}
    written: dict[str, Scored] = {}
    for name, questions in asked.items():
        kept, left_out[name] = without_copies(questions, folder.folded)
        written[name] = score(classifier, kept, name, baselines=baselines)
    validation, held_out = (folder.scored[name] for name in ("validation", "held_out"))
    follow_ups = [q for q in given["development"] if q.kind == FOLLOW_UP]
    return Sets(
        folder=folder,
        validation=score(classifier, validation, "validation", baselines=baselines),
        held_out=score(classifier, held_out, "held out", baselines=baselines),
        written=written,
        follow_ups=score(classifier, follow_ups, "follow-ups"),
        left_out=left_out,
        num_baseline={baseline.name: baseline.num_texts for baseline in baselines},
    )
