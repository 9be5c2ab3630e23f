"""Adapters with more than A and B in the reference decoder: beside others, replaced, evicted."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import AdapterNotSupported
from deployments.engine.lora.peft_features import WEIGHTS_FILE
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.peft_decoder import PeftDecoder
from tests.deployments.engine.lora.test_peft_features import (
    base_dir,
    base_weights,
    one_answer,
    plain,
)
from tests.deployments.engine.test_model_runner import PROMPT, changed_config, load, one_thread
from tests.oracle import Oracle
from tests.tiny_models import make_adapter, make_tiny_qwen2

__all__ = ["base_dir", "one_thread", "plain"]  # fixtures

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
    own = copy.deepcopy(options)  # PEFT changes the lists in them
    make_adapter(base, folder, base_name="b", seed=seed, std=0.5, **own)
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
    ("one", "refused", "after"),
    [
        (
            {"targets": ["up_proj"]},
            {"targets": ["q_proj"], "modules_to_save": ["up_proj"]},
            {"targets": ["gate_proj"], "modules_to_save": ["q_proj"]},
        ),
        (
            {"targets": ["lm_head"]},
            {"modules_to_save": ENDS},
            {"targets": ["embed_tokens", "q_proj"]},
        ),
    ],
    ids=["a pair", "a whole layer"],
)
def test_a_refused_adapter_leaves_nothing_behind(
    base_dir: Path,
    tmp_path: Path,
    one: dict[str, Any],
    refused: dict[str, Any],
    after: dict[str, Any],
) -> None:
    """PEFT forgets the name of what it could not inject, and leaves its layers in the base."""
    decoder: Any = build_decoder(load(base_dir), "reference", LIMITS, {})
    base = one_answer(decoder, None)
    decoder.load_adapter("one", trained(base_dir, tmp_path / "one", 5, **one))
    found = one_answer(decoder, "one")
    with pytest.raises(AdapterNotSupported, match="PEFT wraps it once: serve them in two"):
        decoder.load_adapter("refused", trained(base_dir, tmp_path / "refused", 6, **refused))
    folder = trained(base_dir, tmp_path / "after", 7, **after)
    decoder.load_adapter("after", folder)
    expected = Oracle(base_dir, {"x": folder}).generate(PROMPT, "x", 8)
    answers = [one_answer(decoder, side) for side in ("after", "one", None)]
    assert answers == [expected, found, base]
    assert len({*map(tuple, answers)}) == 3


@pytest.mark.parametrize(
    "options", [{"targets": ["k_proj"]}, {"targets": ["up_proj"], "modules_to_save": ["k_proj"]}]
)
def test_trained_biases_of_layers_that_another_adapter_wraps(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """PEFT looks for them where they were when the adapter was saved."""
    base_dir = make_tiny_qwen2(tmp_path / "base")
    folders = {
        "other": trained(base_dir, tmp_path / "other", 5, **options),
        "biased": trained(base_dir, tmp_path / "biased", 6, bias="all"),
    }
    assert any(n.endswith("k_proj.bias") for n in load_file(folders["biased"] / WEIGHTS_FILE))
    expected = {
        name: Oracle(base_dir, {"x": f}).generate(PROMPT, "x", 8) for name, f in folders.items()
    }
    decoder: Any = build_decoder(load(base_dir), "reference", LIMITS, {})
    before = one_answer(decoder, None)
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    for name in ("biased", "other", "biased"):
        assert one_answer(decoder, name) == expected[name], name
        assert one_answer(decoder, None) == before
    odd = load_file(folders["biased"] / WEIGHTS_FILE)
    save_file(
        {n: t[:4].clone() if n.endswith("bias") else t for n, t in odd.items()},
        folders["biased"] / WEIGHTS_FILE,
    )
    with pytest.raises(AdapterNotSupported, match="bias"):
        decoder.load_adapter("biased", folders["biased"])
    assert one_answer(decoder, None) == before


@pytest.mark.filterwarnings("ignore:target_parameters=")
def test_target_parameters_beside_what_peft_runs_otherwise(base_dir: Path, tmp_path: Path) -> None:
    """PEFT would raise of the first in words of its own, and of the other two in every answer."""
    kinds: Mapping[str, dict[str, Any]] = {
        "parameters": {"targets": ["o_proj"], "target_parameters": ["up_proj.weight"]},
        "dora": {"targets": ["up_proj"], "use_dora": True},
        "whole": {"modules_to_save": ["up_proj"]},
        "invoked": {"alora_invocation_tokens": [9, 17]},
    }
    folders = {
        kind: trained(base_dir, tmp_path / kind, seed, **options)
        for seed, (kind, options) in enumerate(kinds.items())
    }
    decoder: Any = build_decoder(load(base_dir), "reference", LIMITS, {})
    for first, second, named in (
        ("parameters", "dora", "use_dora is set, in a layer that another adapter has in target_p"),
        ("parameters", "invoked", "alora_invocation_tokens beside target_parameters of another"),
        ("invoked", "parameters", "target_parameters beside alora_invocation_tokens of another"),
        ("whole", "parameters", "target_parameters is .*in a layer that another adapter has"),
    ):
        decoder.load_adapter("first", folders[first])
        found = one_answer(decoder, "first")
        with pytest.raises(AdapterNotSupported, match=f"{named}.*serve them in two applications"):
            decoder.load_adapter("second", folders[second])
        assert one_answer(decoder, "first") == found
        decoder.evict("first")


NEITHER: Sequence[tuple[dict[str, Any], str]] = (
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'.*path_initial_model_for_"),
    ({"kasa_config": {"beta": 1e-4, "gamma": 1e-3}}, "kasa_config is set.*train it without"),
    ({"kasa_config": {}}, "kasa_config is set.*train it without"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is set.*train it without"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config is set.*add those adapters one by one"),
    ({"megatron_config": {"a": 1}}, "megatron_config is set.*remove it from adapter_config"),
)


def test_what_neither_decoder_serves_does_not_choose_the_slower_one(
    base_dir: Path, plain: Path, tmp_path: Path
) -> None:
    odd = {
        f"odd {number}": changed_config(plain, tmp_path / f"{number}", **fields)
        for number, (fields, _) in enumerate(NEITHER)
    }
    decoder = build_decoder(load(base_dir), "auto", LIMITS, {**odd, "plain": plain})
    assert isinstance(decoder, ModelRunner)
    reference = build_decoder(load(base_dir), "reference", LIMITS, {})
    weights = {path: p.clone() for path, p in base_weights(reference)}
    for each in (decoder, reference):
        for folder, (_, named) in zip(odd.values(), NEITHER, strict=True):
            with pytest.raises(AdapterNotSupported, match=named):
                each.load_adapter("odd", folder)
    assert all(torch.equal(p, weights[path]) for path, p in base_weights(reference))


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


def test_a_tensor_of_another_shape(base_dir: Path, plain: Path, tmp_path: Path) -> None:
    odd = changed_config(plain, tmp_path / "odd")
    file = odd / "adapter_model.safetensors"
    save_file({n: t[:, :9].clone() if "_A" in n else t for n, t in load_file(file).items()}, file)
    decoder = build_decoder(load(base_dir), "reference", LIMITS, {})
    named = r"q_proj.lora_A.weight is \(4, 9\); the base needs \(4, 64\).*and 2 more: train it on"
    with pytest.raises(AdapterNotSupported, match=named):
        decoder.load_adapter("odd", odd)


@pytest.mark.parametrize("whole", ENDS)
def test_tokens_of_what_is_trained_whole(base_dir: Path, tmp_path: Path, whole: str) -> None:
    """In one adapter, on tied ends."""
    options: dict[str, Any] = {"trainable_token_indices": [9, 33], "modules_to_save": [whole]}
    odd = trained(base_dir, tmp_path / "odd", 5, **options)
    decoder = build_decoder(load(base_dir), "reference", LIMITS, {})
    with pytest.raises(AdapterNotSupported, match="and the whole of it, or of what is tied to it"):
        decoder.load_adapter("odd", odd)


DOES_NOT_FIT: Sequence[tuple[dict[str, Any], str]] = (
    ({"layers_to_transform": 1}, "layers.0.self_attn.q_proj.lora_A.weight belongs to no layer"),
    (
        {"target_modules": ["q_proj", "k_proj", "v_proj"], "init_lora_weights": False},
        "layers.0.self_attn.k_proj.lora_A.weight is not in its file",
    ),
    ({"use_dora": True}, "q_proj.lora_magnitude_vector.weight is not in its file.*and 2 more"),
    ({"lora_bias": True}, "q_proj.lora_B.bias is not in its file"),
    ({"modules_to_save": ["lm_head"]}, "lm_head.weight' is not in its file: save it again"),
)


def test_a_file_that_its_configuration_does_not_fit(
    base_dir: Path, plain: Path, tmp_path: Path
) -> None:
    """PEFT drops what it has no layer for, and draws what is missing: it warns, and goes on."""
    decoder = build_decoder(load(base_dir), "reference", LIMITS, {})
    for adapters in (set(), {"plain"}):
        for fields, named in DOES_NOT_FIT:
            odd = changed_config(
                plain, tmp_path / f"{len(adapters)} {next(iter(fields))}", **fields
            )
            with pytest.raises(AdapterNotSupported, match=named):
                decoder.load_adapter("odd", odd)
            assert decoder.info.adapters == adapters
        decoder.load_adapter("plain", plain)


def test_what_peft_applies_elsewhere_alone_is_named(
    tiny_catalogs: Catalogs, base_dir: Path, plain: Path, tmp_path: Path
) -> None:
    pooled = changed_config(plain, tmp_path / "pooled", use_qalora=True)
    file = pooled / "adapter_model.safetensors"
    save_file({n: t[:, ::16].clone() if "_A" in n else t for n, t in load_file(file).items()}, file)
    decoder = build_decoder(load(base_dir), "auto", LIMITS, {"pooled": pooled})
    with pytest.raises(AdapterNotSupported, match="use_qalora is set, .*bases of GPTQ alone"):
        decoder.load_adapter("pooled", pooled)
    t5, catalogue = tiny_catalogs["flan_t5"]
    source = catalogue / "weights" / "derm"
    invoked = changed_config(source, tmp_path / "invoked", alora_invocation_tokens=[9])
    base = load_pretrained(t5, "seq2seq", device="cpu", dtype="float32")
    decoder = build_decoder(base, "auto", LIMITS, {"invoked": invoked})
    with pytest.raises(AdapterNotSupported, match="alora_invocation_tokens is set, .*decoder-only"):
        decoder.load_adapter("invoked", invoked)


@pytest.mark.parametrize("family", ["llama", "flan_t5"])
def test_a_module_that_peft_would_wrap_twice(
    tiny_catalogs: Catalogs, tmp_path: Path, family: str
) -> None:
    """Of T5 it would do so, and answer with the other adapter's embedding."""
    base_dir = tiny_catalogs[family][0]
    name = "embed_tokens" if family == "llama" else "shared"
    kinds: Mapping[str, dict[str, Any]] = {
        "tokens": {"trainable_token_indices": [9, 33]},
        "whole": {"modules_to_save": [name]},
        "pair": {"targets": [name]},
    }
    folders = {
        kind: trained(base_dir, tmp_path / kind, seed, **options)
        for seed, (kind, options) in enumerate(kinds.items())
    }
    kind: Any = "causal" if family == "llama" else "seq2seq"
    base = load_pretrained(base_dir, kind, device="cpu", dtype="float32")
    decoder: Any = build_decoder(base, "reference", LIMITS, {})
    for first, second in (("whole", "tokens"), ("tokens", "whole"), ("tokens", "pair")):
        before = one_answer(decoder, None)
        decoder.load_adapter("first", folders[first])
        found = one_answer(decoder, "first")
        with pytest.raises(AdapterNotSupported, match="two applications, or train both in"):
            decoder.load_adapter("second", folders[second])
        assert [one_answer(decoder, side) for side in ("first", None)] == [found, before]
        decoder.evict("first")
