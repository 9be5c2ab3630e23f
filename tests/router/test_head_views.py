"""Long texts are read in pieces, and what is in scope weighs most."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.artefact import Artefact, load_artefact
from router.head import MAX_PIECES, MIN_WORDS, PIECE_WORDS, TextViews, read, view_spans

LINE = "tell me about eczema rash please."
NOISE = "tell me about football weather please. " * 20


@pytest.fixture(scope="module")
def artefact(tiny_router_dir: Path) -> Artefact:
    return load_artefact(tiny_router_dir)


def readings(artefact: Artefact, *texts: str) -> list[TextViews]:
    return read(texts, artefact.encoder, artefact.ngrams, artefact.projection)


@pytest.mark.parametrize("text", ["", " ", LINE, "rash. " * MIN_WORDS])
def test_a_short_text_has_one_view(text: str) -> None:
    assert view_spans(text) == [(0, len(text))]


@pytest.mark.parametrize("word", ["rash", "a" * 300])
def test_a_page_without_marks_is_cut_all_the_same(word: str) -> None:
    text = f"{word} " * 500
    whole, *pieces = view_spans(text)
    assert whole == (0, len(text))
    assert [start for start, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
    assert pieces[-1][1] == len(text)
    assert all(1 <= len(text[a:b].split()) <= 2 * PIECE_WORDS for a, b in pieces)


@given(st.text("ab .!?;\n", min_size=200, max_size=1500))
def test_pieces_follow_each_other_and_cover_the_text(text: str) -> None:
    whole, *pieces = view_spans(text)
    assert whole == (0, len(text))
    if pieces and len(pieces) < MAX_PIECES:
        assert [start for start, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
        assert pieces[-1][1] == len(text)
    for start, end in pieces:
        num_sentences = sum(text[start:end].count(mark) for mark in ".!?;\n")
        assert len(text[start:end].split()) <= PIECE_WORDS or num_sentences >= 1


def test_pieces_of_a_page_are_bounded_and_reach_its_end() -> None:
    text = " ".join(f"sentence number {i} of this page." for i in range(5000))
    _, *pieces = view_spans(text)
    assert len(pieces) == MAX_PIECES
    assert pieces[0][0] == 0
    assert pieces[-1][1] == len(text)
    assert all(len(text[a:b].split()) <= PIECE_WORDS for a, b in pieces)


def test_a_short_texts_features_are_those_of_its_only_view(artefact: Artefact) -> None:
    [found] = readings(artefact, LINE)
    assert found.weights.tolist() == [1.0]
    assert found.whole is found.strongest
    view = found.whole
    expected = artefact.projection.features(view.encoded.pooled, view.ngrams)
    assert np.allclose(found.features, expected, atol=1e-6)


def test_the_line_that_is_in_scope_weighs_most(artefact: Artefact) -> None:
    [found] = readings(artefact, f"{NOISE}{LINE} {NOISE}")
    assert len(found.views) > 3
    assert found.weights.sum() == pytest.approx(1, abs=1e-5)
    assert "eczema rash" in found.strongest.text
    assert found.weights.max() > 1.5 * found.weights.min()
    assert (
        found.strongest.text
        == f"{NOISE}{LINE} {NOISE}"[found.strongest.start :][: len(found.strongest.text)]
    )
    plain = np.stack(
        [artefact.projection.features(v.encoded.pooled, v.ngrams) for v in found.views]
    )
    assert np.allclose(found.features, found.weights @ plain, atol=1e-4)


def test_readings_come_in_the_order_of_their_texts(artefact: Artefact) -> None:
    texts = [LINE, NOISE, "", "kidney urine"]
    for found, text in zip(readings(artefact, *texts), texts, strict=True):
        [alone] = readings(artefact, text)
        assert found.whole.text == text
        assert np.allclose(found.features, alone.features, atol=1e-3)
