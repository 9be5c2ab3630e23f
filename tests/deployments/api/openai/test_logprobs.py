"""logprobs, top_logprobs and echo as OpenAI's client reads them, over a tiny model's scores."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from transformers import AutoTokenizer

from deployments.api.app import create_api
from tests.conftest import TINY_ADAPTERS
from tests.deployments.conftest import SmallBackend, error_of
from tests.deployments.tiny_clinic import TinyClinic
from tests.oracle import Oracle

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
CHAT_BODY = {"model": "derm", "messages": [{"role": "user", "content": "What is eczema?"}]}
Catalogs = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def clinic(
    tiny_catalogs: Catalogs, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[TinyClinic]:
    clinic = TinyClinic(*tiny_catalogs["llama"], tmp_path_factory.mktemp("state"))
    yield clinic  # type: ignore[misc]
    clinic.replica.close()


@pytest.fixture
async def http(clinic: TinyClinic) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_api(clinic))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as http:
        yield http


@pytest.fixture
def sdk(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="unused", base_url="http://clinic/v1", http_client=http, max_retries=0
    )


async def test_a_chat(sdk: openai.AsyncOpenAI) -> None:
    chat: Any = await sdk.chat.completions.create(
        **CHAT_BODY, logprobs=True, top_logprobs=3, max_tokens=12
    )
    content = chat.choices[0].logprobs.content
    assert len(content) in (11, 12)  # without what ends it
    said = b"".join(bytes(token.bytes) for token in content)
    assert said.decode(errors="replace").startswith(chat.choices[0].message.content)
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1.0001
    plain: Any = await sdk.chat.completions.create(**CHAT_BODY, max_tokens=12)
    assert plain.choices[0].logprobs is None
    assert plain.choices[0].message.content == chat.choices[0].message.content


async def test_a_stream_says_what_the_whole_reply_says(sdk: openai.AsyncOpenAI) -> None:
    asked: Any = {**CHAT_BODY, "logprobs": True, "top_logprobs": 2, "max_tokens": 12}
    whole: Any = await sdk.chat.completions.create(**asked)
    text, tokens = "", []
    async for chunk in await sdk.chat.completions.create(**asked, stream=True):
        choice: Any = chunk.choices[0]
        text += choice.delta.content or ""
        tokens += choice.logprobs.content if choice.logprobs else []
    assert text == whole.choices[0].message.content
    assert tokens == whole.choices[0].logprobs.content


async def test_choices_of_several_prompts(http: httpx.AsyncClient) -> None:
    body = {"model": "derm", "prompt": ["a rash", "an itch"], "n": 2, "logprobs": 1}
    reply = (await http.post(COMPLETIONS, json={**body, "temperature": 1, "seed": 3})).json()
    for choice in reply["choices"]:
        scores = choice["logprobs"]
        assert len(scores["tokens"]) == len(scores["text_offset"]) == len(scores["top_logprobs"])
        assert len(scores["tokens"]) > 2
        assert all(0 < len(top) <= 2 for top in scores["top_logprobs"])


@pytest.mark.parametrize("adapter", [None, *TINY_ADAPTERS])
@pytest.mark.parametrize("stream", [False, True])
async def test_echo_gives_transformers_own_scores(
    http: httpx.AsyncClient, tiny_catalogs: Catalogs, adapter: str | None, stream: bool
) -> None:
    """What lm-eval sends: token ids, a greedy token, the prompt's own scores."""
    base, catalog = tiny_catalogs["llama"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer("Eczema is a rash. It itches, and it comes back.")["input_ids"]
    body = {"model": adapter or "base", "prompt": ids, "echo": True, "logprobs": 1}
    body |= {"max_tokens": 1, "temperature": 0, "seed": 1234, "stream": stream}
    reply = await http.post(COMPLETIONS, json=body)
    assert reply.status_code == 200, reply.text
    if stream:
        lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
        found = [httpx.Response(200, text=line).json()["choices"][0] for line in lines]
        text = "".join(choice["text"] for choice in found)
        own = [v for c in found if c["logprobs"] for v in c["logprobs"]["token_logprobs"]]
    else:
        choice = reply.json()["choices"][0]
        text, own = choice["text"], choice["logprobs"]["token_logprobs"]
        assert choice["logprobs"]["top_logprobs"][0] is None
    oracle = Oracle(base, {name: catalog / "weights" / name for name in TINY_ADAPTERS})
    expected = oracle.logprobs(ids, [], adapter)
    likelihood = [float(row[token]) for row, token in zip(expected, ids[1:], strict=True)]
    assert own[0] is None
    assert own[1:-1] == pytest.approx(likelihood, abs=5e-4)
    assert text.startswith("Eczema is a rash.")


async def test_no_token_at_all(http: httpx.AsyncClient) -> None:
    body = {"model": "derm", "prompt": "Eczema is", "echo": True, "max_tokens": 0, "logprobs": 0}
    reply = (await http.post(COMPLETIONS, json=body)).json()
    choice = reply["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Eczema is", "length")
    assert reply["usage"]["completion_tokens"] == 0
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    assert "".join(tokens) == "Eczema is"
    assert [choice["text"][at:].startswith(t) for at, t in zip(offsets, tokens, strict=True)]
    assert reply["polyclinic"]["red_flags"] == []


async def test_echo_without_scores(http: httpx.AsyncClient) -> None:
    body = {"model": "base", "prompt": "Eczema is", "echo": True, "max_tokens": 4}
    choice = (await http.post(COMPLETIONS, json=body)).json()["choices"][0]
    assert choice["logprobs"] is None
    assert choice["text"].startswith("Eczema is")


async def test_a_response(sdk: openai.AsyncOpenAI) -> None:
    asked: Any = {"model": "derm", "input": "What is eczema?", "max_output_tokens": 8}
    asked |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole: Any = await sdk.responses.create(**asked)
    logprobs = whole.output[0].content[0].logprobs
    assert [len(token.top_logprobs) for token in logprobs] == [2] * len(logprobs)
    streamed = []
    async for event in await sdk.responses.create(**asked, stream=True):
        if event.type == "response.output_text.delta":
            streamed += [token.logprob for token in event.logprobs]
        if event.type == "response.completed":
            last: Any = event.response.output[0]
            assert last.content[0].logprobs == logprobs
    assert streamed == pytest.approx([token.logprob for token in logprobs], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"echo": True}, "echo"),  # nobody is named
        ({"echo": True, "model": "auto"}, "echo"),
        ({"echo": True, "model": "derm-1", "grounding": "quote"}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True, "model": "derm-1"}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": "5"}, "logprobs"),
        ({"logprobs": 1, "grounding": "cite"}, "logprobs"),
        ({"logprobs": 1, "top_logprobs": 1}, "top_logprobs"),
        ({"echo": True, "model": "derm-1", "prompt": "a\x07"}, "prompt"),
        ({"echo": True, "model": "derm-1", "prompt": ["a"] * 99}, "prompt"),
        ({"echo": True, "model": "derm-1", "prompt": ["ok", "a" * 9000]}, "prompt.1"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, change: dict[str, Any], param: str) -> None:
    reply = await client.post(COMPLETIONS, json={"prompt": "a red rash", **change})
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["param"] == param


async def test_where_the_operator_answers_from_references(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    references = backend.limits.references.model_copy(update={"mode": "quote"})
    backend.limits = backend.limits.model_copy(update={"references": references})
    body = {"messages": [{"role": "user", "content": "a red rash"}]}
    for field in ({"logprobs": True}, {"guided_choice": ["a"]}):
        reply = (await client.post(CHAT, json={**body, **field})).json()
        assert reply["polyclinic"]["notices"] == ["references_left_out"]
        assert reply["choices"][0]["message"]["content"] == "A RED RASH"
        off = (await client.post(CHAT, json={**body, **field, "grounding": "off"})).json()
        assert off["polyclinic"]["notices"] == []
        error = error_of(await client.post(CHAT, json={**body, **field, "grounding": "quote"}))
        assert (error["code"], error["param"]) == ("conflicting_fields", next(iter(field)))


async def test_bad_ids_are_named(http: httpx.AsyncClient) -> None:
    body = {"model": "derm", "prompt": [[5, 6], [5, 999_999]], "echo": True, "max_tokens": 1}
    error = error_of(await http.post(COMPLETIONS, json=body))
    assert (error["code"], error["param"]) == ("invalid_token_id", "prompt.1")
    assert "position 1: token id 999999 is out of range" in error["message"]
