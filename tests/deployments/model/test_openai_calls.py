"""What OpenAI's endpoints ask of a model replica: the text of token ids, an answer that fits."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.prompting import Message
from adapters.token_prompts import BadTokenId
from deployments.engine.request import FinishReason, SamplingParams, TokenEvent
from deployments.messages import GenerateRequest
from deployments.model.deployment import ModelReplica
from deployments.settings import Settings

pytestmark = pytest.mark.slow

NUM_POSITIONS = 64


@pytest.fixture(scope="module")
def replica(
    tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModelReplica]:
    base, catalog = tiny_catalogs["llama"]
    engine = {
        **{"dtype": "float32", "max_rows": 2, "cpu_threads": 1, "default_output_tokens": 8},
        **{"max_input_tokens": NUM_POSITIONS - 4, "max_output_tokens": 64},
    }
    state = str(tmp_path_factory.mktemp("state"))
    args = {"base_model": str(base), "adapters": str(catalog), "state_dir": state}
    replica = ModelReplica(Settings.model_validate({**args, "engine": engine}), "cpu")
    yield replica
    replica.close()


async def test_token_ids_are_those_of_the_base_model(
    replica: ModelReplica, tiny_catalogs: dict[str, tuple[Path, Path]]
) -> None:
    from transformers import AutoTokenizer

    base, _ = tiny_catalogs["llama"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [tokenizer(text).input_ids for text in ("What is eczema?", "What causes migraine?")]
    assert await replica.decode_prompts(ids) == ["What is eczema?", "What causes migraine?"]
    bad = await replica.decode_prompts([ids[0], [5, len(tokenizer)]])
    assert isinstance(bad, BadTokenId)
    assert (bad.prompt, bad.position) == (1, 1)
    assert "out of range" in bad.reason


async def ending(replica: ModelReplica, sampling: SamplingParams, may_shorten: bool) -> TokenEvent:
    turns = (Message("user", "What is eczema?"),)
    call = GenerateRequest("r", turns, None, sampling, False, may_shorten=may_shorten)
    return await replica.answer(call)


async def test_max_tokens_is_lowered_to_what_fits_where_it_may_be(
    replica: ModelReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = (await ending(replica, SamplingParams(1), False)).num_prompt_tokens
    positions = replica._engine.info.num_positions
    assert positions is not None
    room = positions - prompt
    long = SamplingParams(room + 1, min_tokens=room)
    refused = await ending(replica, long, may_shorten=False)
    assert refused.error is not None
    assert refused.error.code == "output_too_long"
    cut = await ending(replica, long, may_shorten=True)
    assert (cut.finish_reason, cut.num_tokens) == (FinishReason.LENGTH, room)
    # What cannot be lowered any more is refused as before.
    impossible = await ending(replica, SamplingParams(room + 1, min_tokens=room + 1), True)
    assert impossible.error is not None
    assert "context_length_exceeded" in impossible.error.message
