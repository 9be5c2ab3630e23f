"""DoRA in the fast decoder: PEFT's tokens, beside adapters without; where it is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import AdapterNotSupported, FastDecoderImpossible
from deployments.engine.kernels.backend import are_fused
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.request import Request, SamplingParams
from scripts.benchmarks.in_process.rounding_errors import Recorder
from tests.deployments.engine.rows_by_hand import run_rows
from tests.deployments.engine.test_architectures import loaded_from
from tests.deployments.engine.test_model_runner import PROMPT, load
from tests.oracle import Oracle
from tests.tiny_models import load_model, make_adapter, make_tiny_llama, make_tiny_qwen2

LIMITS = FastLimits(max_rows=4, num_positions=64, max_adapters=3)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WEIGHTS = "adapter_model.safetensors"


def dora(base: Path, folder: Path, **options: Any) -> Path:
    fields = {"seed": 7, "rank": 6, "std": 0.3, "targets": LINEAR, "use_dora": True} | options
    return make_adapter(base, folder, base_name="b", **fields)


def answers(decoder: ModelRunner, *adapters: str | None) -> list[list[int]]:
    asked = [Request(f"r{i}", PROMPT, a, SamplingParams(12)) for i, a in enumerate(adapters)]
    return run_rows(decoder, asked).answers


def runner(base: Path, folders: dict[str, Path]) -> ModelRunner:
    decoder = build_decoder(loaded_from(base), "auto", LIMITS, folders)
    assert isinstance(decoder, ModelRunner), decoder.info.reason
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    return decoder


@pytest.mark.parametrize("make", [make_tiny_llama, make_tiny_qwen2])
@pytest.mark.parametrize(
    "options",
    [
        {"targets": ["embed_tokens", "q_proj", "lm_head"]},
        {"use_rslora": True, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"o_proj": 40}},
        {"targets": ["q_proj"], "layers_to_transform": [1]},
    ],
    ids=["ends", "patterns", "one layer"],
)
def test_it_answers_as_peft_does_beside_adapters_without(
    make: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    base = make(tmp_path / "base")
    folders = {
        "dora": dora(base, tmp_path / "dora", **options),
        "plain": make_adapter(base, tmp_path / "plain", base_name="b", seed=3, rank=16, std=0.3),
    }
    decoder, oracle = runner(base, folders), Oracle(base, folders)
    sides = ("dora", None, "plain", "dora")
    expected = [oracle.generate(PROMPT, side, 12) for side in sides]
    assert len(set(map(tuple, expected))) == 3, "nothing would be tested"
    assert answers(decoder, *sides) == expected
    assert answers(decoder, "dora") == expected[:1]


def test_the_gains_are_pefts(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base")
    folder = dora(base, tmp_path / "dora")
    decoder = runner(base, {"dora": folder})
    peft = PeftModel.from_pretrained(load_model(base), str(folder))
    for path, stack in decoder.lora_pool._stacks.by_module.items():
        layer = peft.get_submodule(f"base_model.model.{path}")
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        lengths = (layer.weight + layer.scaling["default"] * b @ a).norm(dim=1)
        wanted = layer.lora_magnitude_vector["default"].weight / lengths
        assert stack.gains is not None
        torch.testing.assert_close(stack.gains[1].cpu(), wanted.detach())
        assert torch.equal(stack.gains[0].cpu(), torch.ones(len(wanted))), "the base's own"


def test_a_slot_keeps_nothing_of_a_dora_adapter(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base")
    folders = {
        "a": dora(base, tmp_path / "a"),
        "b": make_adapter(base, tmp_path / "b", base_name="b", seed=3, targets=LINEAR, std=0.2),
    }
    decoder = runner(base, {"a": folders["a"]})
    decoder.evict("a")
    decoder.load_adapter("b", folders["b"])
    decoder.load_adapter("a", folders["b"])
    expected = Oracle(base, folders).generate(PROMPT, "b", 12)
    assert answers(decoder, "b", "a") == [expected, expected]
    decoder.load_adapter("a", folders["a"])  # and the other way round
    assert answers(decoder, "a") == [Oracle(base, folders).generate(PROMPT, "a", 12)]


@torch.inference_mode()
def test_bfloat16_is_as_near_as_plain_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_tiny_llama(tmp_path / "base")
    distance = {}
    for name in ("dora", "plain"):
        folder = dora(base, tmp_path / name, use_dora=name == "dora")
        exact = PeftModel.from_pretrained(load_model(base), str(folder))
        wanted = exact(torch.tensor([PROMPT])).logits[0, -1]
        loaded = load_pretrained(base, "causal", device="cpu", dtype="bfloat16")
        decoder = build_decoder(loaded, "fast", LIMITS, {})
        assert isinstance(decoder, ModelRunner)
        decoder.load_adapter("a", folder)
        seen: dict[int, list[torch.Tensor]] = {row: [] for row in range(LIMITS.max_rows)}
        monkeypatch.setattr(decoder, "_sampler", Recorder(decoder._sampler, seen))
        answers(decoder, "a")
        distance[name] = float((seen[0][0].float() - wanted).norm() / wanted.norm())
    assert distance["dora"] < max(0.02, 2 * distance["plain"])


def test_magnitudes_that_are_missing_or_of_another_size_are_named(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base")
    folder = dora(base, tmp_path / "dora")
    decoder = runner(base, {})
    whole = load_file(folder / WEIGHTS)
    one = "base_model.model.model.layers.1.mlp.up_proj.lora_magnitude_vector"
    for changed in ({n: t for n, t in whole.items() if n != one}, whole | {one: torch.ones(3)}):
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(
            AdapterNotSupported, match=r"layers\.1\.mlp\.up_proj has no lora_magnit"
        ):
            decoder.load_adapter("dora", folder)
    save_file({n: t for n, t in whole.items() if "magnitude" not in n}, folder / WEIGHTS)
    with pytest.raises(AdapterNotSupported, match="use_dora is True, but its file holds no lora_m"):
        decoder.load_adapter("dora", folder)


@pytest.mark.slow  # compiles the step
@pytest.mark.skipif(are_fused("cpu"), reason="the interpreter runs the steps")
def test_weights_in_bytes_keep_the_torch_model_or_refuse_it(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base")
    folder = dora(base, tmp_path / "dora")
    named = "'dora' has features .* use_dora is True, and weights of eight or four bits do not"
    with pytest.raises(FastDecoderImpossible, match=named):
        build_decoder(load(base), "auto", LIMITS, {"dora": folder}, weights="int8")
    torch_model = build_decoder(load(base), "auto", LIMITS, {"dora": folder}, weights="auto")
    assert isinstance(torch_model, ModelRunner)
    decoder = build_decoder(load(base), "auto", LIMITS, {}, weights="int8")
    with pytest.raises(AdapterNotSupported, match="weights of eight or four bits do not take it"):
        decoder.load_adapter("dora", folder)


def test_the_reference_decoder_serves_it_too(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base")
    folder = dora(base, tmp_path / "dora")
    decoder = build_decoder(load(base), "reference", LIMITS, {"dora": folder})
    assert isinstance(decoder, PeftDecoder)
    decoder.load_adapter("dora", folder)
    assert decoder.info.adapters == {"dora"}
