"""How the weights are kept on a CPU: chosen by processor, base and settings, with the reason."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.engine.cpu import intrinsics, products
from deployments.engine.cpu.self_test import _one_layer
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
from tests.tiny_models import make_tiny_llama, make_tiny_qwen2, make_tiny_relu_t5

LIMITS = FastLimits(max_rows=2, num_positions=64, max_adapters=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = make_tiny_llama(tmp_path_factory.mktemp("weights") / "base")
    return load_pretrained(folder, "causal", device="cpu", dtype="float32")


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the decoder's choice see another processor; kernels are compiled for this one."""
    assert intrinsics.byte_instructions() == products._KIND, "they would be for another one"

    def has(instructions: str | None) -> None:
        name = "deployments.engine.cpu.intrinsics.byte_instructions"
        monkeypatch.setattr(name, lambda: instructions)

    return has


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the test at the start find these milliseconds, or fail with an exception."""

    def finds(found: dict[str, float] | Exception) -> None:
        def step_times(model: Any, makers: Any) -> dict[str, float]:
            if isinstance(found, Exception):
                raise found
            assert set(makers) == set(found)
            return found

        monkeypatch.setattr("deployments.engine.cpu.self_test.step_times", step_times)

    return finds


@pytest.mark.parametrize("instructions", ["avx512_vnni", "avx_vnni", "avx2", None])
def test_auto_is_int8_where_a_layer_is_faster_with_it(
    base: Pretrained, processor: Any, measured: Any, instructions: str | None
) -> None:
    processor(instructions)
    measured({"int8": 0.4, "float32": 1.2})
    chosen = choose_weights(replace(base, is_dtype_free=True), "auto", LIMITS)
    assert chosen.in_bytes
    assert chosen.reason.startswith("int8: a layer takes 0.40 ms with int8 and 1.20 ms with float")


def test_auto_is_plain_where_torch_is_faster_and_says_why(base: Pretrained, measured: Any) -> None:
    measured({"int8": 1.3, "float32": 1.2})
    chosen = choose_weights(replace(base, is_dtype_free=True), "auto", LIMITS)
    assert not chosen.in_bytes
    assert "float32: asked for in engine.dtype; not int8, since a layer takes 1.30" in chosen.reason


@pytest.mark.parametrize(
    ("instructions", "in_bytes", "named"),
    [
        ("avx512_vnni", True, "int8: this processor has avx512_vnni; its speed could not be"),
        ("avx2", True, "int8: this processor has avx2; its speed could not be"),
        (None, False, "(MemoryError; see the log), and this processor has no instructions for b"),
    ],
)
def test_the_instructions_decide_where_nothing_can_be_measured(
    base: Pretrained,
    processor: Any,
    measured: Any,
    instructions: str | None,
    in_bytes: bool,
    named: str,
) -> None:
    processor(instructions)
    measured(MemoryError("no room"))
    chosen = choose_weights(replace(base, is_dtype_free=True), "auto", LIMITS)
    assert chosen.in_bytes == in_bytes
    assert named in chosen.reason


@pytest.mark.slow  # compiles the step, once for each machine
@pytest.mark.parametrize("make", [make_tiny_llama, make_tiny_qwen2])
def test_a_layer_is_timed_and_the_base_left_alone(tmp_path: Path, make: Any) -> None:
    loaded = load_pretrained(make(tmp_path / "base"), "causal", device="cpu")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    chosen = choose_weights(replace(loaded, is_dtype_free=True), "auto", LIMITS)
    shown = re.search(r"a layer takes ([\d.]+) ms with int8 and ([\d.]+) ms with", chosen.reason)
    assert shown, chosen.reason
    assert chosen.in_bytes == (float(shown[1]) <= float(shown[2]))
    after = loaded.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.slow
def test_a_large_base_is_timed_in_a_smaller_size(tmp_path: Path) -> None:
    sizes = {"hidden_size": 1536, "intermediate_size": 4608, "num_attention_heads": 24}
    folder = make_tiny_llama(tmp_path / "base", **sizes, num_key_value_heads=8)
    loaded = load_pretrained(folder, "causal", device="cpu")
    layer = _one_layer(loaded.model).model.layers[0]
    assert layer.mlp.down_proj.weight.shape == (1024, 4096)
    assert layer.self_attn.q_proj.weight.shape == (15 * 64, 1024)  # whole groups of three heads
    assert layer.self_attn.k_proj.weight.shape == (5 * 64, 1024)
    assert choose_weights(replace(loaded, is_dtype_free=True), "auto", LIMITS).reason


def test_a_dtype_that_was_asked_for_stays(base: Pretrained, processor: Any) -> None:
    processor("avx512_vnni")
    assert not base.is_dtype_free
    chosen = choose_weights(base, "auto", LIMITS)
    assert not chosen.in_bytes
    assert "engine.dtype asks for float32" in chosen.reason


@pytest.mark.parametrize(("weights", "bits"), [("int8", 8), ("int4", 4)])
def test_what_was_asked_for_needs_no_instructions_and_no_measurement(
    base: Pretrained, processor: Any, measured: Any, weights: Weights, bits: int
) -> None:
    processor(None)
    measured(AssertionError("it was measured"))
    chosen = choose_weights(base, weights, LIMITS)
    assert (chosen.in_bytes, chosen.bits, chosen.reason) == (True, bits, f"{weights}: asked for")


def test_none_stays_plain(base: Pretrained, processor: Any) -> None:
    processor("avx512_vnni")
    assert not choose_weights(replace(base, is_dtype_free=True), "none", LIMITS).in_bytes


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
    asked: list[Weights] = ["int8", "int4"]
    folder = make_tiny_llama(tmp_path / "base", **options)
    loaded = load_pretrained(folder, "causal", device="cpu")
    assert named in (unsupported_in_bytes(loaded) or "")
    assert not choose_weights(loaded, "auto", LIMITS).in_bytes
    for weights in asked:
        with pytest.raises(
            FastDecoderImpossible, match=f"quantization is {weights}, but .*{named[:11]}"
        ):
            build_decoder(loaded, "auto", LIMITS, {}, weights=weights)


def test_t5_stays_plain(tmp_path: Path) -> None:
    loaded = load_pretrained(make_tiny_relu_t5(tmp_path / "base"), "seq2seq", device="cpu")
    chosen = choose_weights(loaded, "auto", LIMITS)
    assert not chosen.in_bytes
    assert "encoder-decoder" in chosen.reason


def test_a_step_that_cannot_be_compiled_is_no_end(
    base: Pretrained, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("LLVM ERROR")

    processor("avx512_vnni")
    monkeypatch.setattr("deployments.engine.cpu.step.compile_step", fail)
    chosen = choose_weights(replace(base, is_dtype_free=True), "auto", LIMITS)
    assert not chosen.in_bytes
    assert "Numba cannot compile its step here (RuntimeError" in chosen.reason


def test_without_numba_it_stays_plain(base: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "numba" else find(name)
    )
    assert "numba is not installed" in choose_weights(base, "auto", LIMITS).reason


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_reference_decoder_has_no_bytes_on_a_cpu(base: Pretrained, weights: Weights) -> None:
    with pytest.raises(FastDecoderImpossible, match=f"{weights} on a CPU .* auto or fast"):
        build_decoder(base, "reference", LIMITS, {}, weights=weights)


@pytest.mark.parametrize("weights", ["none", "auto"])
def test_the_choice_is_reported(base: Pretrained, weights: Weights, tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "base")
    loaded = load_pretrained(folder, "causal", device="cpu", dtype="float32")
    decoder = build_decoder(loaded, "auto", LIMITS, {}, weights=weights)
    assert isinstance(decoder, ModelRunner)
    assert decoder.info.weights.startswith("float32: asked for")
    assert decoder.info.weights in decoder.info.reason
    assert decoder.info.threads is not None
