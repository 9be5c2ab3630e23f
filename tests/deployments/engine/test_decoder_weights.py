"""How the weights are kept on a CPU: chosen by processor, base and settings, with the reason."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.decoder_factory import (
    FastLimits,
    Weights,
    build_decoder,
    choose_weights,
    unsupported_in_bytes,
)
from deployments.engine.errors import FastDecoderImpossible
from deployments.engine.model_loader import Pretrained, load_pretrained
from deployments.engine.model_runner import ModelRunner
from tests.tiny_models import make_tiny_llama, make_tiny_relu_t5

LIMITS = FastLimits(max_rows=2, num_positions=64, max_adapters=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = make_tiny_llama(tmp_path_factory.mktemp("weights") / "base")
    return load_pretrained(folder, "causal", device="cpu", dtype="float32")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    def has(instructions: str | None) -> None:
        name = "deployments.engine.cpu.intrinsics.byte_instructions"
        monkeypatch.setattr(name, lambda: instructions)

    return has


@pytest.mark.parametrize("instructions", ["avx512_vnni", "avx_vnni"])
def test_auto_is_int8_where_the_processor_multiplies_bytes(
    base: Pretrained, processor: Any, instructions: str
) -> None:
    processor(instructions)
    chosen = choose_weights(replace(base, is_dtype_free=True), "auto")
    assert (chosen.in_bytes, chosen.reason) == (True, f"int8: this processor has {instructions}")


def test_auto_is_plain_elsewhere_and_says_why(base: Pretrained, processor: Any) -> None:
    processor(None)
    chosen = choose_weights(replace(base, is_dtype_free=True), "auto")
    assert not chosen.in_bytes
    assert "float32: asked for in engine.dtype; not int8, since" in chosen.reason
    assert "no instructions for bytes" in chosen.reason


def test_a_dtype_that_was_asked_for_stays(base: Pretrained, processor: Any) -> None:
    processor("avx512_vnni")
    assert not base.is_dtype_free
    chosen = choose_weights(base, "auto")
    assert not chosen.in_bytes
    assert "engine.dtype asks for float32" in chosen.reason


def test_int8_that_was_asked_for_needs_no_instructions(base: Pretrained, processor: Any) -> None:
    processor(None)
    assert choose_weights(base, "int8").in_bytes


def test_none_stays_plain(base: Pretrained, processor: Any) -> None:
    processor("avx512_vnni")
    assert not choose_weights(replace(base, is_dtype_free=True), "none").in_bytes


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 24}, "24 dimensions, no multiple of 16"),
    ],
)
def test_a_base_that_is_not_compiled_is_named(
    tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    folder = make_tiny_llama(tmp_path / "base", **options)
    loaded = load_pretrained(folder, "causal", device="cpu")
    assert named in (unsupported_in_bytes(loaded) or "")
    assert not choose_weights(loaded, "auto").in_bytes
    with pytest.raises(FastDecoderImpossible, match=f"quantization is int8, but .*{named[:11]}"):
        build_decoder(loaded, "auto", LIMITS, {}, weights="int8")


def test_t5_stays_plain(tmp_path: Path) -> None:
    loaded = load_pretrained(make_tiny_relu_t5(tmp_path / "base"), "seq2seq", device="cpu")
    chosen = choose_weights(loaded, "auto")
    assert not chosen.in_bytes
    assert "encoder-decoder" in chosen.reason


def test_a_step_that_cannot_be_compiled_is_no_end(
    base: Pretrained, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("LLVM ERROR")

    processor("avx512_vnni")
    monkeypatch.setattr("deployments.engine.cpu.step.compile_step", fail)
    chosen = choose_weights(replace(base, is_dtype_free=True), "auto")
    assert not chosen.in_bytes
    assert "Numba cannot compile its step here (RuntimeError" in chosen.reason


def test_without_numba_it_stays_plain(base: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numba" else find(name)
    )
    assert "numba is not installed" in choose_weights(base, "auto").reason


def test_the_reference_decoder_has_no_int8_on_a_cpu(base: Pretrained) -> None:
    with pytest.raises(FastDecoderImpossible, match="set engine.decoder to auto or fast"):
        build_decoder(base, "reference", LIMITS, {}, weights="int8")


@pytest.mark.parametrize("weights", ["none", "auto"])
def test_the_choice_is_reported(base: Pretrained, weights: Weights, tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "base")
    loaded = load_pretrained(folder, "causal", device="cpu", dtype="float32")
    decoder = build_decoder(loaded, "auto", LIMITS, {}, weights=weights)
    assert isinstance(decoder, ModelRunner)
    assert decoder.info.weights.startswith("float32: asked for")
    assert decoder.info.weights in decoder.info.reason
    assert decoder.info.threads is not None
