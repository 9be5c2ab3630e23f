"""/v1/completions: one prompt or several, as text or as token ids, whole and streamed."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest

from deployments.api.protocol.openai_replies import CompletionReply
from deployments.engine.request import ErrorInfo, FinishReason, TokenEvent
from deployments.messages import GenerateRequest
from tests.deployments.api.test_app import chunks_of
from tests.deployments.conftest import UNCACHED, SmallBackend, error_of

PATH = "/v1/completions"
USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a red rash", ["a red rash"]),
        (["a red rash"], ["a red rash"]),
        (["a red rash", "on my arm"], ["a red rash", "on my arm"]),
        (["a red rash"] * 32, ["a red rash"] * 32),
        ([0, 1, 2], ["a red rash"]),
        ([[0, 1, 2]], ["a red rash"]),
        ([[0, 1, 2], [3, 4, 5]], ["a red rash", "on my arm"]),
    ],
)
@pytest.mark.parametrize("model", ["auto", "derm-1", "base"])
async def test_each_prompt_is_a_question_with_a_choice_of_its_own(
    client: httpx.AsyncClient, backend: SmallBackend, prompt: Any, asked: list[str], model: str
) -> None:
    response = await client.post(PATH, json={"prompt": prompt, "model": model})
    assert response.status_code == 200, response.text
    body = response.json()
    CompletionReply.model_validate(body)
    assert [choice["text"] for choice in body["choices"]] == [text.upper() for text in asked]
    assert [choice["index"] for choice in body["choices"]] == list(range(len(asked)))
    usage = {"prompt_tokens": 7, **UNCACHED, "completion_tokens": 3, "total_tokens": 10}
    assert body["usage"] == {key: value * len(asked) for key, value in usage.items()}
    assert body["polyclinic"]["usage"] == usage
    assert ("polyclinic" in body["choices"][0]) == (len(asked) > 1)
    assert backend.classified == ([[text] for text in asked] if model == "auto" else [])
    ids = [call.request_id for call in backend.calls]
    assert len(set(ids)) == len(asked)
    if len(asked) == 1:
        assert ids == [body["polyclinic"]["request_id"]]


@pytest.mark.parametrize("prompt", [["a red rash", "on my arm"], [[0, 1, 2], [3, 4, 5]]])
async def test_several_prompts_are_streamed_with_their_index(
    client: httpx.AsyncClient, prompt: Any
) -> None:
    response = await client.post(PATH, json={"prompt": prompt, **USAGE})
    *chunks, usage, done = chunks_of(response.text)
    assert done == "[DONE]"
    for number, text in enumerate(("A RED RASH", "ON MY ARM")):
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == number]
        assert "".join(chunk["choices"][0]["text"] for chunk in own) == text
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in own]
        assert reasons == [None] * (len(own) - 1) + ["stop"]
        assert own[0]["polyclinic"]["adapter"] == "derm-1"
        assert own[-1]["polyclinic"]["usage"]["completion_tokens"] == 3
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 14,
        **UNCACHED,
        "completion_tokens": 6,
        "total_tokens": 20,
    }


async def test_prompts_go_to_their_own_specialists(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    body = (await client.post(PATH, json={"prompt": ["a red rash", "football"]})).json()
    assert body["model"] == "auto", "several answered"
    parts = [choice["polyclinic"] for choice in body["choices"]]
    assert [part["adapter"] for part in parts] == ["derm-1", None]
    assert [part["reason"] for part in parts] == ["confident", "out_of_scope"]
    assert [call.adapter for call in backend.calls] == ["derm-1", None]


@pytest.mark.parametrize(
    ("prompt", "param", "words"),
    [
        ([], "prompt", "at least 1 item"),
        ("", "prompt", "empty"),
        (None, "prompt", "valid string"),
        (7, "prompt", "valid string"),
        (True, "prompt", "valid string"),
        ({}, "prompt", "valid string"),
        ([""], "prompt.0", "empty"),
        (["a rash", " "], "prompt.1", "empty"),
        (["a rash", "42"], "prompt.1", "no letter"),
        (["a rash", "b\x00"], "prompt.1", "U+0000"),
        (["a rash", 1], "prompt.1", "valid string (got 1)"),
        (["a rash", None], "prompt.1", "valid string"),
        (["a rash", ["b"]], "prompt.1", "valid string"),
        ([True], "prompt.0", "valid string"),
        ([1, "a rash"], "prompt.1", "valid integer (got 'a rash')"),
        ([1, 2.0], "prompt.1", "valid integer (got 2.0)"),
        ([1, True], "prompt.1", "valid integer (got True)"),
        ([0, -1], "prompt.1", "greater than or equal to 0 (got -1)"),
        ([0, 6], "prompt.1", "token id 6 is out of range"),
        ([[]], "prompt.0", "empty"),
        ([[0], []], "prompt.1", "empty"),
        ([[0], "a rash"], "prompt.1", "valid list"),
        ([[0], [1, "b"]], "prompt.1.1", "valid integer"),
        ([[0], [1, -1]], "prompt.1.1", "greater than or equal to 0"),
        ([[0], [1, 10**30]], "prompt.1.1", "out of range"),
        (["a rash"] * 33, "prompt", "33 given; at most 32 in one request"),
        ([[0]] * 33, "prompt", "33 given; at most 32 in one request"),
    ],
)
async def test_a_prompt_that_is_none_is_named(
    client: httpx.AsyncClient, backend: SmallBackend, prompt: Any, param: str, words: str
) -> None:
    response = await client.post(PATH, json={"prompt": prompt})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert len(error["message"]) < 300
    assert backend.calls == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_fails_ends_the_request(
    client: httpx.AsyncClient,
    backend: SmallBackend,
    monkeypatch: pytest.MonkeyPatch,
    stream: bool,
) -> None:
    """Before anything is sent it is a status; the other prompts are cancelled."""
    generate = backend.generate

    async def second_fails(call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        if call.turns[-1].content == "on my arm":
            error = ErrorInfo("prompt_too_long", "17 tokens; at most 16", "question")
            event = backend._event(call, "", 0, FinishReason.ERROR, error)
            yield event
            return
        async for event in generate(call):
            yield event

    monkeypatch.setattr(backend, "generate", second_fails)
    asked = {"prompt": ["on my arm", "a red rash"], "stream": stream}
    response = await client.post(PATH, json=asked)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "prompt.0"
    assert backend.num_closed == len(backend.calls)


async def test_a_stream_that_breaks_in_one_of_its_prompts_ends(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    backend.break_after = 2
    text = (await client.post(PATH, json={"prompt": ["a b", "a b c"], **USAGE})).text
    last = json.loads(text.rstrip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "replica_lost"
    assert "[DONE]" not in text


async def test_openais_client_reads_several_choices(backend: SmallBackend) -> None:
    from deployments.api.app import create_api

    transport = httpx.ASGITransport(create_api(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic/v1") as http:
        client = openai.AsyncOpenAI(
            base_url="http://clinic/v1",
            api_key="unused",
            http_client=http,
            max_retries=0,
        )
        whole = await client.completions.create(model="auto", prompt=["a red rash", "on my arm"])
        assert [choice.text for choice in whole.choices] == ["A RED RASH", "ON MY ARM"]
        texts = ["", ""]
        async for chunk in await client.completions.create(
            model="auto", prompt=[[0, 1, 2], [3, 4, 5]], stream=True
        ):
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == ["A RED RASH", "ON MY ARM"]
