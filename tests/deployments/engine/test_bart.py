"""What BART and its relatives have that no other base has; their tokens: test_architectures.py."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.engine.decoder_factory import Choice, FastLimits, build_decoder
from deployments.engine.engine import Engine, EngineLimits
from deployments.engine.errors import NotForThisModel, OutputTooLong, PromptTooLong
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import FinishReason, Request, SamplingParams, TokenEvent
from tests.deployments.engine.rows_by_hand import run_rows
from tests.deployments.engine.test_architectures import fast, loaded_from
from tests.deployments.engine.test_parity import one_thread
from tests.oracle import Oracle
from tests.tiny_architectures import FORCED_FIRST, make_tiny
from tests.tiny_models import make_adapter

__all__ = ["one_thread"]  # a fixture
LIMITS = FastLimits(2, 200, max_adapters=2)
POSITIONS = 64  # of prompt and of answer, each, in tiny_architectures.py
PAD, EOS = 0, 1


def made(name: str, folder: Path, **options: Any) -> tuple[Path, Path]:
    base = make_tiny(name, folder / "base", **options)
    targets = ["q_proj", "v_proj", "fc1"]
    adapter = make_adapter(
        base, folder / "a", base_name="b", seed=1, std=0.3, rank=8, targets=targets
    )
    return base, adapter


def engine_of(base: Path, choice: Choice = "fast") -> Engine:
    loaded = loaded_from(base)
    decoder = build_decoder(loaded, choice, LIMITS, {})
    return Engine.on_thread(decoder, EngineLimits(2, 8, max_input_tokens=150))


async def asked(engine: Engine, ids: Sequence[int], sampling: SamplingParams) -> TokenEvent:
    request = Request("r", tuple(ids), None, sampling)
    return [event async for event in engine.generate(request, stream=False)][-1]


@pytest.mark.parametrize("name", ["bart", "mbart", "nllb"])
def test_padding_inside_a_prompt_has_no_position_where_transformers_gives_it_none(
    name: str, tmp_path: Path
) -> None:
    base, adapter = made(name, tmp_path)
    decoder, oracle = fast(base, {"a": adapter}), Oracle(base, {"a": adapter})
    decoder.load_adapter("a", adapter)
    rng = random.Random(3)
    for side in (None, "a"):
        prompts = [[rng.randrange(3, decoder.vocab_size) for _ in range(20)] for _ in range(3)]
        for ids, pads in zip(prompts, ([], [4, 5, 11], [0, 19]), strict=True):
            for at in pads:
                ids[at] = PAD
        requests = [Request("r", tuple(ids), side, SamplingParams(8)) for ids in prompts]
        answers = run_rows(decoder, requests, prefill_tokens=100).answers
        assert answers == [oracle.generate(ids, side, 8) for ids in prompts]


@pytest.mark.parametrize("name", ["bart", "mbart", "nllb"])
def test_halves_and_head_with_embeddings_of_their_own(name: str, tmp_path: Path) -> None:
    """What `tie_word_embeddings: false` means in transformers 5: three tables, and a head."""
    base, adapter = made(name, tmp_path, tie_word_embeddings=False)
    decoder, oracle = fast(base, {"a": adapter}), Oracle(base, {"a": adapter})
    decoder.load_adapter("a", adapter)
    said = set()
    for number in range(6):
        side = "a" if number % 2 else None
        ids = tuple(random.Random(number).choices(range(3, decoder.vocab_size), k=20))
        answer = run_rows(decoder, [Request("r", ids, side, SamplingParams(10))]).answers[0]
        assert answer == oracle.generate(ids, side, 10)
        said.add(tuple(answer))
    assert len(said) > 2


@pytest.mark.parametrize("name", sorted(FORCED_FIRST))
@pytest.mark.parametrize("choice", ["fast", "reference"])
async def test_the_first_token_is_the_one_that_the_configuration_names(
    name: str, choice: Choice, tmp_path: Path
) -> None:
    base, adapter = made(name, tmp_path)
    engine = engine_of(base, choice)
    try:
        ids = list(range(3, 20))
        expected = Oracle(base, {"a": adapter}).generate(ids, None, 6)
        assert expected[0] == FORCED_FIRST[name]
        event = await asked(engine, ids, SamplingParams(6))
        said = [token for token in expected if token != EOS]
        assert event.text == engine.core.decode(said)
        with pytest.raises(NotForThisModel, match="begins with a token that its configuration"):
            await asked(engine, ids, SamplingParams(6, grammar="start: /a/"))
        drawn = await asked(engine, ids, SamplingParams(6, temperature=1.5, seed=4))
        assert drawn.text.startswith(engine.core.decode(expected[:1]))
    finally:
        engine.close()


@pytest.mark.parametrize("choice", ["fast", "reference"])
async def test_an_end_that_is_forced_is_reported_as_the_length(
    choice: Choice, tmp_path: Path
) -> None:
    base, _ = made("bart", tmp_path)
    engine = engine_of(base, choice)
    try:
        event = await asked(engine, range(3, 20), SamplingParams(5))
        assert (event.finish_reason, event.num_tokens) == (FinishReason.LENGTH, 5)
        one = await asked(engine, range(3, 20), SamplingParams(1))
        assert (one.finish_reason, one.text) == (FinishReason.LENGTH, "")
    finally:
        engine.close()


@pytest.mark.parametrize("has_generation_config", [True, False])
@pytest.mark.parametrize("is_stated", [True, False])
async def test_what_config_json_does_not_state_is_not_forced(
    is_stated: bool, has_generation_config: bool, tmp_path: Path
) -> None:
    base, adapter = made("bart", tmp_path)
    config = json.loads((base / "config.json").read_text())
    generation = base / "generation_config.json"
    if not is_stated:
        del config["forced_eos_token_id"]
        (base / "config.json").write_text(json.dumps(config))
    if not has_generation_config:
        generation.unlink()
    ids = tuple(range(3, 20))
    expected = Oracle(base, {"a": adapter}).generate(ids, None, 5)
    assert (expected[-1] == EOS) == (is_stated or has_generation_config)
    answers = run_rows(fast(base, {}), [Request("r", ids, None, SamplingParams(5))]).answers
    assert answers[0] == expected
    for choice in ("fast", "reference"):
        engine = engine_of(base, choice)
        try:
            event = await asked(engine, ids, SamplingParams(5))
            said = [token for token in expected if token != EOS]
            assert event.text == engine.core.decode(said)
        finally:
            engine.close()


@pytest.mark.parametrize("choice", ["fast", "reference"])
async def test_prompt_and_answer_have_a_table_of_positions_each(
    choice: Choice, tmp_path: Path
) -> None:
    base, _ = made("bart", tmp_path)
    engine = engine_of(base, choice)
    try:
        whole = [3 + i % 90 for i in range(POSITIONS)]
        event = await asked(engine, whole, SamplingParams(POSITIONS, min_tokens=POSITIONS - 1))
        assert event.num_tokens == POSITIONS
        with pytest.raises(PromptTooLong, match="is 65 tokens long; .* at most 64 "):
            await asked(engine, [*whole, 3], SamplingParams(1))
        with pytest.raises(OutputTooLong, match="ask for at most 64 tokens"):
            await asked(engine, whole, SamplingParams(POSITIONS + 1))
    finally:
        engine.close()


async def test_sines_and_cosines_go_on_behind_the_trained_length(tmp_path: Path) -> None:
    """As transformers does: the table grows."""
    base, adapter = made("nllb", tmp_path)
    decoder = build_decoder(loaded_from(base), "fast", replace(LIMITS, num_positions=300), {})
    assert isinstance(decoder, ModelRunner)
    ids = tuple(3 + i % 90 for i in range(3 * POSITIONS))
    answer = run_rows(decoder, [Request("r", ids, None, SamplingParams(80))]).answers[0]
    assert answer == Oracle(base, {"a": adapter}).generate(ids, None, 80)
