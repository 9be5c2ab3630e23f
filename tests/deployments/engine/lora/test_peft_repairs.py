"""Adapters with more than A and B in the reference decoder: beside others, replaced, evicted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import AdapterNotSupported
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.peft_decoder import PeftDecoder
from tests.deployments.engine.lora.test_peft_features import (
    base_dir,
    base_weights,
    one_answer,
    plain,
)
from tests.deployments.engine.test_model_runner import PROMPT, changed_config, load
from tests.oracle import Oracle
from tests.tiny_models import make_adapter

__all__ = ["base_dir", "plain"]  # fixtures

LIMITS = FastLimits(max_rows=2, num_positions=64, max_adapters=3)
Catalogs = dict[str, tuple[Path, Path]]
ENDS = ["embed_tokens", "lm_head"]
KINDS: Mapping[str, dict[str, Any]] = {
    "tied modules": {"modules_to_save": ENDS, "ensure_weight_tying": True},
    "tied ends": {"targets": ENDS, "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [9, 33]},
    "invoked": {"alora_invocation_tokens": [9, 17]},
    "first layer": {"targets": ["embed_tokens", "q_proj"], "modules_to_save": ["lm_head"]},
    "bias": {"lora_bias": True},
}


def trained(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    """An adapter whose whole weights are trained too; tied ones stay equal."""
    make_adapter(base, folder, base_name="b", seed=seed, std=0.5, **options)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "lora_" not in name and "base_layer" not in name:
            generator = torch.Generator().manual_seed(seed)
            tensors[name] = tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_of_a_kind_come_and_go_beside_another(
    base_dir: Path, plain: Path, tmp_path: Path, kind: str
) -> None:
    one, two = (trained(base_dir, tmp_path / f"{s}", s, **KINDS[kind]) for s in (5, 6))
    expected = {
        folder: Oracle(base_dir, {"x": folder}).generate(PROMPT, "x", 8)
        for folder in (one, two, plain)
    }
    base = Oracle(base_dir, {"x": plain}).generate(PROMPT, None, 8)
    assert len({tuple(answer) for answer in (*expected.values(), base)}) == 4
    decoder = build_decoder(load(base_dir), "reference", LIMITS, {})
    assert isinstance(decoder, PeftDecoder)

    def check(**folders: Path) -> None:
        for name, folder in folders.items():
            assert one_answer(decoder, name) == expected[folder], name
            assert one_answer(decoder, None) == base

    decoder.load_adapter("a", one)
    check(a=one)
    decoder.load_adapter("plain", plain)
    decoder.load_adapter("b", two)
    check(a=one, plain=plain, b=two)
    decoder.load_adapter("a", two)
    decoder.load_adapter("b", one)
    check(a=two, b=one)
    decoder.set_adapter("b")
    decoder.evict("b")
    check(a=two, plain=plain)
    decoder.evict("plain")
    decoder.set_adapter("a")
    decoder.evict("a")
    assert one_answer(decoder, None) == base
    decoder.load_adapter("b", two)
    check(b=two)


def test_weights_for_all_adapters_are_refused(base_dir: Path, plain: Path, tmp_path: Path) -> None:
    """PEFT writes what it finds under the name of a base weight into the base model."""
    odd = trained(base_dir, tmp_path / "odd", 5, modules_to_save=["norm"])
    file = odd / "adapter_model.safetensors"
    tensors, name = load_file(file), "model.embed_tokens.weight"
    decoder = build_decoder(load(base_dir), "auto", LIMITS, {"odd": odd})
    assert isinstance(decoder, PeftDecoder)
    weights = {path: p.clone() for path, p in base_weights(decoder)}
    save_file(tensors | {f"base_model.model.{name}": weights[name] + 0.5}, file)
    for adapters in (set(), {"plain"}):
        with pytest.raises(AdapterNotSupported, match=f"{name} has weights of its own, for all"):
            decoder.load_adapter("odd", odd)
        assert decoder.info.adapters == adapters
        assert torch.equal(dict(base_weights(decoder))[name], weights[name])
        decoder.load_adapter("plain", plain)
    save_file(tensors | {f"base_model.model.{name}": weights[name].bfloat16()}, file)
    decoder.load_adapter("odd", odd)
    assert one_answer(decoder, "odd") != one_answer(decoder, None)
    assert torch.equal(dict(base_weights(decoder))[name], weights[name]), "rounded"


@pytest.mark.parametrize("targets", [["shared", "q"], ["lm_head"]])
def test_an_encoder_decoders_ends_come_and_go(
    tiny_catalogs: Catalogs, tmp_path: Path, targets: list[str]
) -> None:
    """No other adapter is in the first layer that it changes."""
    base_dir, plain = tiny_catalogs["flan_t5"][0], tiny_catalogs["flan_t5"][1] / "weights" / "derm"
    odd = make_adapter(base_dir, tmp_path / "odd", base_name="b", seed=3, targets=targets)
    base = load_pretrained(base_dir, "seq2seq", device="cpu", dtype="float32")
    decoder = build_decoder(base, "auto", LIMITS, {"odd": odd})
    assert isinstance(decoder, PeftDecoder)
    decoder.load_adapter("plain", plain)
    before = one_answer(decoder, None)
    decoder.load_adapter("odd", odd)
    found = [one_answer(decoder, name) for name in ("plain", "odd")]
    decoder.evict("odd")
    assert one_answer(decoder, None) == before
    assert one_answer(decoder, "plain") == found[0]
    assert before not in found


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'.*path_initial_model_for_"),
        ({"kasa_config": {"beta": 1e-4, "gamma": 1e-3}}, "kasa_config is set.*train it without"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is set.*train it without"),
    ],
)
def test_what_neither_decoder_serves_does_not_choose_the_slower_one(
    base_dir: Path, plain: Path, tmp_path: Path, fields: dict[str, Any], named: str
) -> None:
    odd = changed_config(plain, tmp_path / "odd", **fields)
    decoder = build_decoder(load(base_dir), "auto", LIMITS, {"odd": odd, "plain": plain})
    assert isinstance(decoder, ModelRunner)
    reference = build_decoder(load(base_dir), "reference", LIMITS, {})
    for each in (decoder, reference):
        with pytest.raises(AdapterNotSupported, match=named):
            each.load_adapter("odd", odd)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {"alora_invocation_tokens": [9, 10**6]},
            r"invocation_tokens has \[1000000\]; the base has 0",
        ),
        (
            {"targets": ["o_proj"], "target_parameters": ["q_proj.weight"]},
            r"target_parameters is \['q_proj.weight'\], in a layer that another adapter has",
        ),
    ],
)
def test_what_peft_cannot_load_here_is_refused_by_name(
    base_dir: Path, plain: Path, tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    odd = make_adapter(base_dir, tmp_path / "odd", base_name="b", seed=5, **options)
    decoder = build_decoder(load(base_dir), "reference", LIMITS, {})
    decoder.load_adapter("plain", plain)
    with pytest.raises(AdapterNotSupported, match=named):
        decoder.load_adapter("odd", odd)
    assert decoder.info.adapters == {"plain"}
