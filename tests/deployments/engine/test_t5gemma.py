"""What T5Gemma and T5Gemma 2 have that no other base has; their tokens: test_architectures.py."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.bases.models import resolve_base_model
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.errors import AdapterNotSupported
from deployments.engine.model_loader import load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.quantised.weight import KINDS, Kind
from deployments.engine.request import Request, SamplingParams
from tests.deployments.engine.quantised.test_parity import write_dequantised
from tests.deployments.engine.rows_by_hand import run_rows
from tests.deployments.engine.test_architectures import chosen, fast, loaded_from
from tests.deployments.engine.test_parity import one_thread
from tests.oracle import Oracle
from tests.tiny_architectures import make_tiny
from tests.tiny_models import make_adapter

pytestmark = pytest.mark.slow

__all__ = ["one_thread"]  # a fixture
NAMES = ("t5gemma", "t5gemma2")
LIMITS = FastLimits(4, 160, max_adapters=3)
END_OF_IMAGE = 9  # in tiny_architectures.py
Config = dict[str, Any]


def adapter_of(base: Path, folder: Path, **options: Any) -> Path:
    fields: dict[str, Any] = {
        "base_name": "b",
        "seed": 1,
        "std": 0.3,
        "rank": 8,
        "targets": ["q_proj", "k_proj"],
    }
    return make_adapter(base, folder, **fields | options)


def answers_of(decoder: ModelRunner, prompts: list[list[int]], side: str | None) -> list[list[int]]:
    requests = [Request("r", tuple(ids), side, SamplingParams(8)) for ids in prompts]
    return run_rows(decoder, requests, prefill_tokens=1000).answers


def drawn(decoder: ModelRunner, *lengths: int) -> list[list[int]]:
    rng = random.Random(4)
    return [[rng.randrange(3, decoder.vocab_size) for _ in range(length)] for length in lengths]


@pytest.mark.parametrize(
    ("name", "part_of", "where"),
    [
        ("t5gemma", lambda config: config["encoder"], "encoder: "),
        ("t5gemma", lambda config: config["decoder"], "decoder: "),
        ("t5gemma2", lambda config: config["encoder"], "encoder: "),
        ("t5gemma2", lambda config: config["encoder"]["text_config"], "encoder: "),
        ("t5gemma2", lambda config: config["decoder"], "decoder: "),
    ],
)
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"value_gate": 0.5}, "value_gate is 0.5 in its config, a field"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"use_bidirectional_attention": False, "taps": []}, ""),
    ],
)
def test_a_field_of_one_half_that_nobody_knows_is_named(
    name: str,
    part_of: Callable[[Config], Config],
    where: str,
    fields: Config,
    named: str,
    tmp_path: Path,
) -> None:
    base = make_tiny(name, tmp_path / "base")
    file = base / "config.json"
    config = json.loads(file.read_text())
    part_of(config).update(fields)
    file.write_text(json.dumps(config))
    decoder = chosen(base)
    assert isinstance(decoder, PeftDecoder if named else ModelRunner)
    assert not named or f"since {where}{named}" in decoder.info.reason


@pytest.mark.parametrize(
    ("name", "half", "fields", "named"),
    [
        # transformers reads this cap and leaves it out, in T5Gemma 2 alone.
        ("t5gemma2", "decoder", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is 30"),
        ("t5gemma", "encoder", {"hidden_activation": "tanh"}, "its activation is 'tanh'"),
        (
            "t5gemma",
            "decoder",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e3},
             "max_position_embeddings": 64},
            "frequencies change beyond 64 positions",
        ),
    ],
)  # fmt: skip
def test_what_would_be_wrong_is_not_fast(
    name: str, half: str, fields: Config, named: str, tmp_path: Path
) -> None:
    base = make_tiny(name, tmp_path / "base")
    file = base / "config.json"
    config = json.loads(file.read_text())
    config[half].update(fields)
    file.write_text(json.dumps(config))
    decoder = chosen(base)
    assert isinstance(decoder, PeftDecoder)
    assert f"since {half}: " in decoder.info.reason
    assert named in decoder.info.reason


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_behind_the_trained_length_is_rotated_on(name: str, tmp_path: Path) -> None:
    """As transformers does. Its halves say how long they were trained; nothing ends there."""
    base = make_tiny(name, tmp_path / "base")
    file = base / "config.json"
    config = json.loads(file.read_text())
    for half in (config["encoder"].get("text_config", config["encoder"]), config["decoder"]):
        half["max_position_embeddings"] = 32
    file.write_text(json.dumps(config))
    adapter = adapter_of(base, tmp_path / "a")
    decoder, oracle = fast(base, {"a": adapter}), Oracle(base, {"a": adapter})
    decoder.load_adapter("a", adapter)
    for ids in drawn(decoder, 70, 33):
        assert answers_of(decoder, [ids], "a") == [oracle.generate(ids, "a", 8)]


@pytest.mark.parametrize("name", NAMES)
def test_every_linear_layer_may_be_adapted(name: str, tmp_path: Path) -> None:
    """Those of T5Gemma 2's vision tower too, which no text goes through."""
    base = make_tiny(name, tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "a", targets=None, target_modules="all-linear", std=0.1)
    decoder, oracle = fast(base, {"a": adapter}), Oracle(base, {"a": adapter})
    decoder.load_adapter("a", adapter)
    prompts = drawn(decoder, 30, 11, 20)
    expected = [oracle.generate(ids, "a", 8) for ids in prompts]
    assert expected != [oracle.generate(ids, None, 8) for ids in prompts]
    assert answers_of(decoder, prompts, "a") == expected


def test_an_adapter_of_images_alone_is_refused(tmp_path: Path) -> None:
    base = make_tiny("t5gemma2", tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "a", targets=None, target_modules=r".*vision.*q_proj")
    with pytest.raises(AdapterNotSupported, match="it adapts only what reads images"):
        fast(base, {}).load_adapter("a", adapter)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_layer_is_not_adapted(name: str, tmp_path: Path) -> None:
    base = make_tiny(name, tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "a", targets=["q_proj", "lm_head.out_proj"])
    decoder = fast(base, {})
    with pytest.raises(AdapterNotSupported, match="lm_head.out_proj is the output layer"):
        decoder.load_adapter("a", adapter)


def test_the_end_of_an_image_has_an_embedding_of_its_own(tmp_path: Path) -> None:
    base = make_tiny("t5gemma2", tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "a")
    decoder, oracle = fast(base, {"a": adapter}), Oracle(base, {"a": adapter})
    decoder.load_adapter("a", adapter)
    for ids in drawn(decoder, 20, 9):
        ids[3::4] = [END_OF_IMAGE] * len(ids[3::4])
        assert answers_of(decoder, [ids], "a") == [oracle.generate(ids, "a", 8)]


def test_the_weights_that_read_images_are_not_kept(tmp_path: Path) -> None:
    loaded = loaded_from(make_tiny("t5gemma2", tmp_path / "base"))
    build_decoder(loaded, "fast", LIMITS, {})
    tower: Any = loaded.model.get_encoder().vision_tower
    assert sum(parameter.numel() for parameter in tower.parameters()) == 0


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_base(name: str, tmp_path: Path) -> None:
    assert resolve_base_model(str(make_tiny(name, tmp_path / "base"))).family == "seq2seq"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_quantised_base_answers_as_its_dequantised_weights(
    name: str, kind: Kind, tmp_path: Path
) -> None:
    base = make_tiny(name, tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "a", targets=["q_proj", "v_proj", "o_proj", "up_proj"])
    dequantised = write_dequantised("flan_t5", base, kind, tmp_path / "dequantised")
    loaded = load_pretrained(base, "seq2seq", device="cpu", dtype="float32", quantization=kind)
    decoder = build_decoder(loaded, "fast", LIMITS, {"a": adapter})
    assert isinstance(decoder, ModelRunner)
    decoder.load_adapter("a", adapter)
    oracle, prompts = Oracle(dequantised, {"a": adapter}), drawn(decoder, 30, 9, 16)
    for side in (None, "a"):
        expected = [oracle.generate(ids, side, 8) for ids in prompts]
        assert answers_of(decoder, prompts, side) == expected


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_any_order_of_sums_gives_the_same_tokens(name: str, in_order: bool, tmp_path: Path) -> None:
    """engine.batch_invariant; that it is to the bit: test_invariance.py."""
    base = make_tiny(name, tmp_path / "base")
    adapters = {
        side: adapter_of(base, tmp_path / side, seed=rank, rank=rank, std=0.2)
        for side, rank in (("a", 4), ("b", 64))
    }
    decoder = build_decoder(loaded_from(base), "fast", LIMITS, {}, batch_invariant=in_order)
    assert isinstance(decoder, ModelRunner)
    assert decoder.info.batch_invariant is in_order
    for side, folder in adapters.items():
        decoder.load_adapter(side, folder)
    oracle, sides = Oracle(base, adapters), ("a", None, "b", "a", "b")
    requests = [
        Request(f"r{i}", tuple(ids), side, SamplingParams(16))
        for i, (ids, side) in enumerate(zip(drawn(decoder, 3, 40, 21, 1, 13), sides, strict=True))
    ]
    run = run_rows(decoder, requests, arrivals=[0, 0, 1, 4, 6], prefill_tokens=1000)
    assert run.most_adapters > 1
    for request, answer in zip(requests, run.answers, strict=True):
        assert answer == oracle.generate(request.prompt_ids, request.adapter, 16)
