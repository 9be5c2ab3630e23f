"""Life around the fast decoder: loading while a batch runs, cancelling, refusing, falling back.

That its tokens are right is in test_parity.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from deployments.engine.core import EngineLimits
from deployments.engine.cuda_graphs import SCRATCH_POSITIONS
from deployments.engine.decoder import StepDecoder
from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.engine import Engine
from deployments.engine.errors import (
    AdapterHasNoEffect,
    AdapterNotSupported,
    FastDecoderImpossible,
    LoraPoolError,
)
from deployments.engine.lora.peft_features import unsupported_features
from deployments.engine.model_loader import Pretrained, load_pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.peft_decoder import PeftDecoder
from deployments.engine.request import FinishReason, Request, SamplingParams, TokenEvent
from tests.conftest import TINY_ADAPTERS
from tests.deployments.engine.rows_by_hand import run_rows
from tests.oracle import Oracle
from tests.tiny_models import make_adapter

LIMITS = FastLimits(max_rows=4, num_positions=64, max_adapters=3)
PROMPT = (5, 9, 17, 4, 33, 8)
Catalogs = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread only waits for the first."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)


@pytest.fixture
def base_dir(tiny_catalogs: Catalogs) -> Path:
    return tiny_catalogs["llama"][0]


@pytest.fixture
def folders(tiny_catalogs: Catalogs) -> dict[str, Path]:
    return {name: tiny_catalogs["llama"][1] / "weights" / name for name in TINY_ADAPTERS}


def load(base_dir: Path) -> Pretrained:
    base = load_pretrained(base_dir, "causal", device="cpu", dtype="float32")
    return replace(base, eos_ids=frozenset({-1}))  # answers run to their length


@pytest.fixture
def decoder(base_dir: Path, folders: dict[str, Path]) -> ModelRunner:
    decoder = build_decoder(load(base_dir), "auto", LIMITS, folders)
    assert isinstance(decoder, ModelRunner)
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    return decoder


@pytest.fixture
async def engine(decoder: ModelRunner) -> AsyncIterator[Engine]:
    engine = Engine.on_thread(
        decoder, EngineLimits(max_rows=4, max_waiting=20, max_input_tokens=40)
    )
    yield engine
    engine.close()
    assert all(state.length == 0 and state.slot == 0 for state in decoder._states), "a row leaked"
    assert not any(decoder.lora_pool._num_rows), "a slot leaked"


def request(adapter: str | None, tokens: int = 12, name: str = "r") -> Request:
    return Request(name, PROMPT, adapter, SamplingParams(tokens))


async def collect(engine: Engine, asked: Request) -> list[TokenEvent]:
    return [event async for event in engine.generate(asked)]


def visible(text: str) -> str:
    """Without a character that the last token left unfinished."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def test_it_is_a_step_decoder(decoder: ModelRunner) -> None:
    assert isinstance(decoder, StepDecoder)
    assert decoder.info.name == "fast"
    assert decoder.info.num_positions == 64
    assert decoder.num_kv_bytes == (4 * 64 + SCRATCH_POSITIONS) * 2 * 2 * 2 * 16 * 4


async def test_the_engine_streams_what_the_oracle_says(
    engine: Engine, decoder: ModelRunner, base_dir: Path, folders: dict[str, Path]
) -> None:
    oracle = Oracle(base_dir, folders)
    sides = [None, *folders] * 3
    answers = await asyncio.gather(*(collect(engine, request(side)) for side in sides))
    for side, events in zip(sides, answers, strict=True):
        expected = oracle.generate(PROMPT, side, 12)
        text = "".join(event.text for event in events)
        assert visible(text) == visible(decoder.decode(expected))
        assert events[-1].finish_reason is FinishReason.LENGTH
        assert events[-1].num_tokens == 12


async def test_cancelling_frees_the_row_and_its_slot(engine: Engine, decoder: ModelRunner) -> None:
    events = engine.generate(request("derm", 50))
    await anext(events)
    assert sum(decoder.lora_pool._num_rows) == 1
    await events.aclose()
    done = asyncio.wrap_future(engine.run_between_steps(lambda: None))
    await done
    again = asyncio.wrap_future(engine.run_between_steps(lambda: sum(decoder.lora_pool._num_rows)))
    assert await again == 0
    assert engine.num_running == 0


async def test_an_adapter_is_replaced_and_evicted_while_rows_run(
    engine: Engine, decoder: ModelRunner, base_dir: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The answer in flight stays on its version, the next one gets the new one."""
    newer = make_adapter(base_dir, tmp_path / "newer", base_name="b", seed=77)
    oracles = Oracle(base_dir, {"old": folders["derm"], "new": newer})
    old, new = (oracles.generate(PROMPT, side, 40) for side in ("old", "new"))
    assert old != new
    stream = engine.generate(request("derm", 40, "first"))
    first = [await anext(stream)]
    weights = decoder.read_adapter(newer)

    def replace_it() -> None:
        decoder.install("derm", weights)

    await asyncio.wrap_future(engine.run_between_steps(replace_it))
    second = asyncio.create_task(collect(engine, request("derm", 40, "second")))
    first += [event async for event in stream]
    await second
    for name, events, expected in (("first", first, old), ("second", second.result(), new)):
        text = "".join(event.text for event in events)
        assert visible(text) == visible(decoder.decode(expected)), name
    evicting = engine.run_between_steps(lambda: decoder.lora_pool.evict("derm"))
    await asyncio.wrap_future(evicting)
    assert decoder.info.adapters == {"cardio"}


def test_an_adapter_without_effect_is_refused_and_the_earlier_one_serves(
    decoder: ModelRunner, base_dir: Path, tmp_path: Path
) -> None:
    idle = make_adapter(base_dir, tmp_path / "idle", base_name="b", seed=5, std=0.0)
    before = run_rows(decoder, [request("derm")]).answers
    with pytest.raises(AdapterHasNoEffect, match=r"'derm' does not change"):
        decoder.load_adapter("derm", idle)
    assert run_rows(decoder, [request("derm")]).answers == before


def test_a_full_bank_says_what_to_do(decoder: ModelRunner, folders: dict[str, Path]) -> None:
    decoder.load_adapter("third", folders["derm"])
    decoder.load_adapter("fourth", folders["derm"])  # the slot that is spare for replacing
    with pytest.raises(LoraPoolError, match=r"'fifth' finds no free slot: 4 adapters are resident"):
        decoder.load_adapter("fifth", folders["derm"])


def test_an_unknown_adapter_does_not_take_a_row(decoder: ModelRunner) -> None:
    with pytest.raises(LoraPoolError, match=r"'zebra' is not resident \(resident: derm, cardio\)"):
        decoder.set_adapter(0, "zebra")


def changed_config(source: Path, folder: Path, **fields: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(
        (source / "adapter_model.safetensors").read_bytes()
    )
    config = json.loads((source / "adapter_config.json").read_text()) | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"a_field_of_the_future": 3}, "a_field_of_the_future is 3"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING'"),
        ({"use_dora": True, "lora_bias": True}, r"lora_bias is True; use_dora is True"),
    ],
)
def test_what_the_bank_cannot_express_goes_to_the_reference_decoder(
    decoder: ModelRunner,
    base_dir: Path,
    folders: dict[str, Path],
    tmp_path: Path,
    fields: dict[str, Any],
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = changed_config(folders["derm"], tmp_path / "odd", **fields)
    assert unsupported_features(folders["derm"]) == []
    with pytest.raises(AdapterNotSupported, match=named):
        decoder.load_adapter("odd", odd)
    with pytest.raises(FastDecoderImpossible, match=named):
        build_decoder(load(base_dir), "fast", LIMITS, {"odd": odd})
    chosen = build_decoder(load(base_dir), "auto", LIMITS, {"odd": odd})
    assert isinstance(chosen, PeftDecoder)
    assert "adapter 'odd' has" in chosen.info.reason
    assert "adapter 'odd' has" in caplog.text


def test_tensors_that_belong_nowhere_are_named(
    decoder: ModelRunner, folders: dict[str, Path], tmp_path: Path
) -> None:
    odd = changed_config(folders["derm"], tmp_path / "odd", layers_to_transform=[0])
    with pytest.raises(AdapterNotSupported, match=r"layers\.1.*belongs to no adapted layer"):
        decoder.load_adapter("odd", odd)
    short = changed_config(folders["derm"], tmp_path / "short", rank_pattern={"q_proj": 2})
    with pytest.raises(AdapterNotSupported, match=r"q_proj is \(4, 64\), \(64, 4\); expected"):
        decoder.load_adapter("short", short)


def test_other_architectures_and_choices_go_to_the_reference_decoder(base_dir: Path) -> None:
    base = load(base_dir)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    other = replace(base, model=GPT2LMHeadModel(config).eval())
    chosen = build_decoder(other, "auto", LIMITS, {})
    assert isinstance(chosen, PeftDecoder)
    assert "GPT2LMHeadModel is none of LlamaForCausalLM" in chosen.info.reason
    asked = build_decoder(base, "reference", LIMITS, {})
    assert asked.info.reason.endswith("engine.decoder is reference")
    quantised = build_decoder(
        replace(base, quantization="nf4", with_bitsandbytes=True), "auto", LIMITS, {}
    )
    assert "quantised to nf4" in quantised.info.reason


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type is 'spiral'"),
        ({"hidden_act": "tanh"}, "its activation is 'tanh'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
    ],
)
def test_variants_that_would_be_wrong_are_not_fast(
    base_dir: Path, fields: dict[str, Any], named: str
) -> None:
    base = load(base_dir)
    for key, value in fields.items():
        setattr(base.model.config, key, value)
    chosen = build_decoder(base, "auto", LIMITS, {})
    assert isinstance(chosen, PeftDecoder)
    assert named in chosen.info.reason


def test_memory_for_not_one_answer_is_refused(base_dir: Path) -> None:
    limits = replace(LIMITS, kv_memory_bytes=20_000)
    with pytest.raises(ValueError, match=r"hold 39 positions.*raise engine.kv_memory_mib"):
        build_decoder(load(base_dir), "fast", limits, {})


def test_a_step_that_fails_leaves_a_decoder_that_works(
    decoder: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_rows(decoder, [request("derm")]).answers

    def broken(*args: object, **more: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(decoder._model, "decode", broken)
        with pytest.raises(RuntimeError, match="broken"):
            run_rows(decoder, [request("derm"), request("cardio")])
    decoder.reset()
    assert not any(decoder.lora_pool._num_rows)
    assert run_rows(decoder, [request("derm")]).answers == before
