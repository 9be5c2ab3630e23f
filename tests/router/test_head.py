"""Features, probabilities and scope by their definitions."""

import numpy as np
import pytest

from router.features import NgramScores, Vector
from router.head import MAX_LOG_ODDS, Head, Projection, log_odds, sigmoid, softmax


def head(temperature: float = 1.0, confidence: float = 0.0) -> Head:
    return Head(
        specialty=np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=np.float32),
        specialty_bias=np.array([0.0, 0.5], dtype=np.float32),
        scope=np.array([0.0, 0.0, 2.0], dtype=np.float32),
        scope_bias=-1.0,
        temperature=temperature,
        scope_scale=1.0,
        scope_confidence=confidence,
        scope_offset=0.25,
    )


def test_features_are_components_and_scaled_logits() -> None:
    nothing = np.array([], dtype=np.int64)
    vector = Vector(nothing, nothing.astype(np.float32), nothing, nothing)
    scores = NgramScores(vector, np.array([1.0, -2.0], dtype=np.float32), 3.0, 9.0)
    projection = Projection(
        mean=np.array([1.0, 1.0], dtype=np.float32),
        components=np.array([[2.0], [0.0]], dtype=np.float32),
        ngram_scale=0.5,
    )
    found = projection.features(np.array([2.0, 7.0], dtype=np.float32), scores)
    assert found.tolist() == [2.0, 0.5, -1.0, 1.5]
    assert found.dtype == np.float32


def test_logits_of_one_text_and_of_many() -> None:
    rows = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    logits, scopes = head().logits(rows)
    assert logits.tolist() == [[1.0, 2.5], [0.0, 0.5]]
    assert scopes.tolist() == [5.0, -1.0]
    one, scope = head().logits(rows[0])
    assert one.tolist() == [1.0, 2.5]
    assert float(scope) == 5.0


def test_temperature_softens_and_keeps_the_order() -> None:
    logits = np.array([3.0, 1.0, 0.0])
    sharp, soft = head(0.5).probabilities(logits), head(4.0).probabilities(logits)
    assert sharp.sum() == pytest.approx(1) == pytest.approx(soft.sum())
    assert sharp.max() > soft.max() > 1 / 3
    assert sharp.argsort().tolist() == soft.argsort().tolist() == [2, 1, 0]


def test_scope_rises_with_its_logit_and_with_confidence() -> None:
    sure, unsure = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    with_confidence = head(confidence=1.0)
    low, high = (with_confidence.in_scope(np.array(z), sure) for z in (-1.0, 1.0))
    assert low < high
    assert with_confidence.in_scope(np.array(0.0), unsure) < with_confidence.in_scope(
        np.array(0.0), sure
    )
    assert head().in_scope(np.array(0.0), unsure) == head().in_scope(np.array(0.0), sure)
    assert float(head().in_scope(np.array(-0.25), unsure)) == pytest.approx(0.5)


def test_extremes_stay_finite() -> None:
    assert softmax(np.array([1e4, -1e4])).tolist() == [1.0, 0.0]
    assert np.isfinite(sigmoid(np.array([-1e9, 1e9]))).all()
    assert log_odds(np.array([0.0, 0.5, 1.0])).tolist() == pytest.approx(
        [-MAX_LOG_ODDS, 0.0, MAX_LOG_ODDS]
    )
