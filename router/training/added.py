"""Fit the column of one more label on a head that stays as it is. Needs scikit-learn.

The old labels' columns, the scope and their thresholds are kept, so a question that the new label
does not claim is answered as before. The features were made to tell the old labels apart, so they
are scaled to equal spread and length first; 40 questions then suffice for a topic of its own, and
the strong penalty keeps them from being learnt by heart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from router.added_labels import AddedLabels
from router.features import Floats
from router.head import Head, sigmoid
from router.policy import Thresholds
from router.training.calibration import fit_platt
from router.training.examples import Array
from router.training.feature_set import FeatureSet
from router.training.outcomes import Outcomes, decided

PENALTY = 0.003  # inverse strength (scikit-learn's C), on features of variance 1
WEIGHT = 10.0  # of the new label's questions together, in medians of the old labels
# From the least at which the label leads by the margin, whatever the others have.
CANDIDATES = np.round(np.arange(0.57, 0.98, 0.02), 2)
CLAIMED_SHARE = 0.015  # of the examples of an old label, at most, where that is possible
WRONG_SHARE = 0.008  # of the old examples: more that are sent to a wrong specialist, likewise
NEVER = 2.0  # a threshold that no probability reaches


@dataclass(frozen=True, slots=True)
class AddedLabel:
    """The head with the new column, and how it does on questions that it was not fitted on.

    Attributes:
        threshold: of the new label.
        recall: share of the new questions that are sent to it, each by a column that was fitted
            without its fold.
        half_recall: likewise, of columns that were fitted on half of the questions.
    """

    head: Head
    threshold: float
    recall: float
    half_recall: float


def add_label(
    head: Head,
    thresholds: Thresholds,
    examples: FeatureSet,
    labels: Sequence[str],
    label: str,
    *,
    min_recall: float,
) -> AddedLabel:
    """Add a column for `label`, or fit the column anew that it has.

    Its threshold is the least at which no old label loses more than CLAIMED_SHARE of its answers
    and no more than WRONG_SHARE go wrong, cross-validated. Where none is enough, it is the one that
    sends the fewest old examples to a wrong specialist while the label gets `min_recall` of its
    own; the least of all where it gets that nowhere.

    Args:
        head, thresholds: of the labels without `label`, or with it if it was added before.
        examples: of all labels; the column is fitted on those that are not validation.
        labels: with `label`, in alphabetical order.
        min_recall: of the new label, below which it is of no use.
    """
    column = labels.index(label)
    ours, used = examples.labels == label, ~examples.is_validation
    wide = _widened(head, column, len(labels), examples.features[used & ~ours])
    assert wide.added is not None
    scaled = replace(examples, features=wide.added.scaled(examples.features))
    scores = _unseen_scores(scaled, ours, used)
    inputs = np.stack([scores, np.zeros_like(scores)], axis=1)
    scale, _, offset = fit_platt(inputs[used], ours[used], _weights(examples, ours)[used])
    direction, bias = _fit(scaled, ours, used)
    wide.specialty[:, column] = scale * direction
    wide.specialty_bias[column] = scale * bias + offset
    logits, scope_logits = wide.logits(examples.features)
    logits = logits.astype(np.float64)
    logits[:, column] = scale * scores + offset

    def results(least: float) -> Outcomes:
        changed = replace(thresholds, by_label={**thresholds.by_label, label: least})
        fitted = _with_threshold(wide, column, least)
        return decided(fitted, changed, logits, scope_logits, examples.labels, labels)

    tried = {float(least): results(least) for least in CANDIDATES}
    threshold = _chosen(results(NEVER), tried, label, min_recall)
    half = scale * _unseen_scores(scaled, ours, _without_half(ours, used)) + offset
    return AddedLabel(
        head=_with_threshold(wide, column, threshold),
        threshold=threshold,
        recall=tried[threshold].recalls[label],
        half_recall=float((sigmoid(half[ours]) >= threshold).mean()),
    )


def _chosen(
    before: Outcomes, tried: Mapping[float, Outcomes], label: str, min_recall: float
) -> float:
    """Return the threshold of those tried that add_label describes."""
    harmless = [c for c, after in tried.items() if _is_harmless(before, after, label)]
    if harmless:
        return min(harmless)
    useful = [c for c, after in tried.items() if after.recalls[label] >= min_recall]
    old = before.labels != label
    return min(useful or [min(tried)], key=lambda c: (tried[c].of(old).num_wrong, c))


def _is_harmless(before: Outcomes, after: Outcomes, label: str) -> bool:
    """Return whether no old label loses more than CLAIMED_SHARE, nor are as many more wrong."""
    old = before.labels != label
    old_before, old_after = before.of(old), after.of(old)
    more_wrong = old_after.num_wrong - old_before.num_wrong
    is_bounded = more_wrong <= max(1, WRONG_SHARE * int(old.sum()))
    return is_bounded and not old_after.lost_recall(old_before, CLAIMED_SHARE)


def _unseen_scores(
    examples: FeatureSet, ours: npt.NDArray[np.bool_], used: npt.NDArray[np.bool_]
) -> Array:
    """Return each example's score (N,) by a column that was fitted on `used` without its fold."""
    direction, bias = _fit(examples, ours, used)
    scores = examples.features @ direction + bias
    for fold in sorted({*examples.folds[used & ours].tolist()}):
        out = examples.folds == fold
        if (used & ours & ~out).any():
            direction, bias = _fit(examples, ours, used & ~out)
            out = out & ~examples.is_validation
            scores[out] = examples.features[out] @ direction + bias
    return np.asarray(scores, dtype=np.float64)


def _fit(
    scaled: FeatureSet, ours: npt.NDArray[np.bool_], used: npt.NDArray[np.bool_]
) -> tuple[Floats, float]:
    model = LogisticRegression(C=PENALTY, max_iter=2000).fit(
        scaled.features[used], ours[used], sample_weight=_weights(scaled, ours)[used]
    )
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])


def _weights(examples: FeatureSet, ours: npt.NDArray[np.bool_]) -> Array:
    return np.where(ours, WEIGHT * examples.weights, examples.weights)


def _without_half(
    ours: npt.NDArray[np.bool_], used: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return `used` without every second example of ours."""
    kept = used.copy()
    kept[np.flatnonzero(ours & used)[::2]] = False
    return kept


def _widened(head: Head, column: int, num_labels: int, others: Floats) -> Head:
    """Return a copy of the head with room for the column; those after it move if it is new.

    Args:
        others: (N, W), features that the first added label is scaled by.
    """
    added = head.added or AddedLabels((), (), others.mean(axis=0), others.std(axis=0) + 1e-6)
    specialty, biases, columns = head.specialty, head.specialty_bias, added.columns
    if specialty.shape[1] < num_labels:
        specialty = np.insert(specialty, column, 0.0, axis=1)
        biases = np.insert(biases, column, 0.0)
        columns = tuple(c + (c >= column) for c in columns)
    return replace(
        head,
        specialty=specialty.copy(),
        specialty_bias=biases.copy(),
        added=replace(added, columns=columns),
    )


def _with_threshold(head: Head, column: int, least: float) -> Head:
    assert head.added is not None
    by_column = dict(zip(head.added.columns, head.added.thresholds, strict=True)) | {column: least}
    columns = tuple(sorted(by_column))
    thresholds = tuple(by_column[c] for c in columns)
    return replace(head, added=replace(head.added, columns=columns, thresholds=thresholds))
