"""How much each example counts."""

import numpy as np
import pytest

from router.training.examples import LabelledText, Recipe, balanced, example_weights


def example(label: str, *, source: str = "MedQuAD", kind: str = "question") -> LabelledText:
    return LabelledText("text", label, "en", source, kind=kind)


def test_weights_have_mean_one_and_follow_source_and_kind() -> None:
    examples = [
        example("a"),
        example("a", source="written"),
        example("a", kind="term"),
        example("a", kind="passage"),
    ]
    weights = example_weights(examples, Recipe())
    assert weights.mean() == pytest.approx(1)
    assert (weights / weights[0]).tolist() == pytest.approx([1, 3, 0.35, 0.5])


def test_a_rare_label_counts_more_but_not_in_full() -> None:
    weights = example_weights([example("common")] * 16 + [example("rare")] * 4, Recipe())
    assert weights[-1] / weights[0] == pytest.approx(2)


def test_balanced_gives_both_sides_the_same_say() -> None:
    positive = np.array([True, True, True, False])
    found = balanced(np.array([1.0, 2.0, 3.0, 5.0]), positive)
    assert found[positive].sum() == pytest.approx(2) == pytest.approx(found[~positive].sum())
    assert found[1] / found[0] == pytest.approx(2)
    alone = balanced(np.ones(3), np.ones(3, dtype=bool))
    assert np.isfinite(alone).all()
