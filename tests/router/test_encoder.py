"""Batches, windows and spans of the ONNX encoder, on a tiny one."""

import threading
from pathlib import Path

import numpy as np
import pytest

from router.encoder import (
    BATCH_TOKENS,
    BOS,
    EOS,
    MAX_WINDOWS,
    WINDOW,
    EncoderError,
    OnnxEncoder,
    _batches,
    _windows,
    softmax,
)

TEXTS = [
    "what can I do about my rash eczema",
    "est-ce que migraine est inquietant",
    "kidney",
    "",
    "🤒🤒",
    "cœur, palpitations !",
    "thyroid " * 400,
    " \n\t ",
]


@pytest.fixture(scope="module")
def encoder(tiny_encoder_dir: Path) -> OnnxEncoder:
    return OnnxEncoder(tiny_encoder_dir, "tiny")


def test_a_batch_equals_single_texts_in_order(encoder: OnnxEncoder) -> None:
    singles = [encoder.encode([text])[0] for text in TEXTS]
    pooled = np.stack([single.pooled for single in singles[:3]])
    assert np.abs(pooled - pooled.mean(axis=0)).max() > 0.1  # they do differ
    for batch in (encoder.encode(TEXTS), encoder.encode(TEXTS[::-1])[::-1]):
        for found, single in zip(batch, singles, strict=True):
            assert found.states.shape == single.states.shape
            assert np.allclose(found.states, single.states, atol=1e-4)
            assert np.allclose(found.pooled, single.pooled, atol=1e-4)
            assert (found.spans == single.spans).all()


@pytest.mark.parametrize("text", [*TEXTS, "a" * 50_000, "rash " * 10_000, "\x00", "湿疹怎么治疗"])
def test_what_every_text_gets(encoder: OnnxEncoder, text: str) -> None:
    [found] = encoder.encode([text])
    num_tokens = len(found.weights)
    assert found.states.shape == (num_tokens, encoder.hidden)
    assert found.spans.shape == (num_tokens, 2)
    assert 2 <= num_tokens <= MAX_WINDOWS * (WINDOW + 2)
    assert np.isfinite(found.states).all()
    assert (found.weights >= 0).all()
    assert found.weights.sum() == pytest.approx(1, abs=1e-5)
    assert np.isfinite(found.pooled).all()
    assert found.pooled.shape == (encoder.hidden,)
    assert (found.spans >= 0).all()
    assert (found.spans[:, 0] <= found.spans[:, 1]).all()
    assert (found.spans <= len(text)).all()


def test_no_text_gives_nothing(encoder: OnnxEncoder) -> None:
    assert encoder.encode([]) == []


def test_spans_point_at_the_characters(encoder: OnnxEncoder) -> None:
    text = "My  ECZEMA, l’œil 🤒 and rash"
    [found] = encoder.encode([text])
    pieces = [text[start:end].strip() for start, end in found.spans.tolist() if end > start]
    assert "ECZEMA" in pieces
    assert "rash" in pieces
    covered = {place for start, end in found.spans.tolist() for place in range(start, end)}
    assert {place for place, c in enumerate(text) if not c.isspace()} <= covered


def test_spans_of_a_long_text_cover_it_to_its_end(encoder: OnnxEncoder) -> None:
    text = " ".join(["rash", "eczema", "skin", "migraine"] * 120)  # 480 tokens: two windows
    [found] = encoder.encode([text])
    spans = [(start, end) for start, end in found.spans.tolist() if end > start]
    assert spans == sorted(spans)
    assert [text[start:end].strip() for start, end in spans] == text.split()


def test_windows_of_a_short_text() -> None:
    [(ids, spans)] = _windows([7, 8], [(0, 3), (3, 5)])
    assert ids == [BOS, 7, 8, EOS]
    assert spans.tolist() == [[0, 0], [0, 3], [3, 5], [0, 0]]
    [(ids, spans)] = _windows([], [])
    assert (ids, spans.tolist()) == ([BOS, EOS], [[0, 0], [0, 0]])


@pytest.mark.parametrize("num_tokens", [1, WINDOW, WINDOW + 1, MAX_WINDOWS * WINDOW])
def test_windows_cover_a_text_in_order(num_tokens: int) -> None:
    offsets = [(i, i + 1) for i in range(num_tokens)]
    found = _windows(range(num_tokens), offsets)
    assert [i for ids, _ in found for i in ids[1:-1]] == list(range(num_tokens))
    assert all(len(ids) == len(spans) <= WINDOW + 2 for ids, spans in found)
    assert all((spans[1:-1, 0] == ids[1:-1]).all() for ids, spans in found)


def test_of_a_longer_text_windows_are_spread_from_first_to_last() -> None:
    num_tokens = 100 * WINDOW
    found = _windows(range(num_tokens), [(i, i + 1) for i in range(num_tokens)])
    starts = [ids[1] for ids, _ in found]
    assert len(starts) == MAX_WINDOWS
    assert (starts[0], starts[-1]) == (0, num_tokens - WINDOW)
    assert min(np.diff(starts)) > 10 * WINDOW


def test_the_end_of_a_long_text_is_heard(encoder: OnnxEncoder) -> None:
    [quiet, loud] = encoder.encode(["please " * 50_000, "please " * 49_900 + "rash " * 100])
    assert np.abs(quiet.pooled - loud.pooled).max() > 1e-3


def test_batches_hold_each_text_once_and_bound_the_memory() -> None:
    lengths = [2, 256, 3, 256, 9, 100, *[256] * 40]
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches = _batches(order, lengths)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) < len(lengths) / 5
    for batch in batches:
        assert len(batch) * max(lengths[i] for i in batch) <= BATCH_TOKENS
    assert _batches([], []) == []


def test_threads_share_one_encoder(encoder: OnnxEncoder) -> None:
    expected = [found.pooled for found in encoder.encode(TEXTS)]
    results: list[list[np.ndarray]] = []

    def work() -> None:
        for _ in range(5):
            results.append([found.pooled for found in encoder.encode(TEXTS)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    for result in results:
        for found, wanted in zip(result, expected, strict=True):
            assert np.allclose(found, wanted, atol=1e-5)


def test_softmax_is_stable() -> None:
    found = softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]], dtype=np.float32))
    assert found.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_files_that_cannot_be_read_are_named(tiny_encoder_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"^tokenizer\.json: it is not a tokenizer"):
        OnnxEncoder(tmp_path, "none")
    (tmp_path / "tokenizer.json").write_bytes((tiny_encoder_dir / "tokenizer.json").read_bytes())
    with pytest.raises(EncoderError, match=r"^encoder\.onnx: it is missing"):
        OnnxEncoder(tmp_path, "none")
    (tmp_path / "encoder.onnx").write_bytes(b"no network")
    with pytest.raises(EncoderError, match=r"^encoder\.onnx: it is not an encoder"):
        OnnxEncoder(tmp_path, "none")
