"""More than fits: a longer answer is cut with a notice, a longer history has OpenAI's code."""

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import openai
import pytest

from deployments.api.app import create_api
from deployments.engine.request import ErrorInfo, FinishReason, TokenEvent
from deployments.messages import GenerateRequest
from tests.deployments.api.test_app import chunks_of
from tests.deployments.conftest import SmallBackend, error_of

USER = {"role": "user", "content": "a red rash"}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [USER]}),
    (TEXT, {"prompt": "a red rash"}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    ("value", "used", "notice"),
    [
        (64, 64, None),
        (65, 64, "max_tokens_lowered"),
        (1000, 64, "max_tokens_lowered"),
        (4096, 64, "max_tokens_lowered"),
        (10**30, 64, "max_tokens_lowered"),
        (None, 16, None),
    ],
)
async def test_a_longer_answer_than_the_limit_is_cut_and_said(
    client: httpx.AsyncClient,
    backend: SmallBackend,
    path: str,
    body: dict[str, Any],
    field: str,
    value: int | None,
    used: int,
    notice: str | None,
) -> None:
    if field == "max_completion_tokens" and path == TEXT:
        return
    response = await client.post(path, json={**body, field: value})
    assert response.status_code == 200, response.text
    assert backend.calls[0].sampling.max_tokens == used
    assert notices_of(response.json()) == ([notice] if notice else [])
    assert response.json()["choices"][0]["finish_reason"] == "stop", "the limit was not reached"
    streamed = await client.post(path, json={**body, field: value, "stream": True})
    chunks = chunks_of(streamed.text)
    assert notices_of(chunks[0]) == ([notice] if notice else [])
    assert not {"notice", "notices"} & set(chunks[-2]["polyclinic"])


NOTICES = [
    ("a rash", ["max_tokens_lowered"]),
    ("Bonjour docteur", ["language_not_supported", "max_tokens_lowered"]),
    ("his face droops", ["urgent", "max_tokens_lowered"]),
    ("Bonjour, his face droops", ["urgent", "language_not_supported", "max_tokens_lowered"]),
]


@pytest.mark.parametrize(("question", "notices"), NOTICES)
async def test_notices_stand_in_their_order(
    client: httpx.AsyncClient, question: str, notices: list[str]
) -> None:
    for path, field, value in (
        (CHAT, "messages", [{"role": "user", "content": question}]),
        (TEXT, "prompt", question),
    ):
        asked = {field: value, "max_tokens": 4096}
        assert notices_of((await client.post(path, json=asked)).json()) == notices
        chunks = chunks_of((await client.post(path, json={**asked, "stream": True})).text)
        assert notices_of(chunks[0]) == notices


def notices_of(body: dict[str, Any]) -> list[str]:
    part = body["polyclinic"]
    assert part["notice"] == next(iter(part["notices"]), None)
    found: list[str] = part["notices"]
    return found


@pytest.mark.parametrize("value", [0, -1, 1.5, "100", True])
async def test_what_is_no_number_of_tokens_is_still_refused(
    client: httpx.AsyncClient, value: Any
) -> None:
    response = await client.post(CHAT, json={"messages": [USER], "max_tokens": value})
    assert (response.status_code, error_of(response)["param"]) == (400, "max_tokens")


async def test_ask_is_strict(client: httpx.AsyncClient) -> None:
    response = await client.post("/ask", json={"question": "a rash", "max_tokens": 65})
    assert (response.status_code, error_of(response)["limit"]) == (400, 64)


@pytest.mark.parametrize(
    ("path", "body", "early"),
    [
        (CHAT, {"messages": [USER]}, []),
        (TEXT, {"prompt": "a red rash"}, []),
        (TEXT, {"prompt": "his face droops"}, ["urgent"]),
        (TEXT, {"prompt": "Bonjour, his face droops"}, ["urgent", "language_not_supported"]),
    ],
)
async def test_less_room_than_the_limit_shows_in_the_ending(
    client: httpx.AsyncClient,
    backend: SmallBackend,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
    early: list[str],
) -> None:
    """The model replica lowers max_tokens to what fits after the prompt: see may_shorten."""

    async def cut(call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        assert call.may_shorten
        yield backend._event(call, "A RED", 2, FinishReason.LENGTH)

    monkeypatch.setattr(backend, "generate", cut)
    whole = (await client.post(path, json=body)).json()
    assert whole["choices"][0]["finish_reason"] == "length"
    assert notices_of(whole) == [*early, "max_tokens_lowered"]
    chunks = chunks_of((await client.post(path, json={**body, "stream": True})).text)
    assert notices_of(chunks[0]) == early
    assert notices_of(chunks[-2]) == [*early, "max_tokens_lowered"]
    short = await client.post(path, json={**body, "max_tokens": 2})
    assert notices_of(short.json()) == early, "as many as were asked for"


def history(num_turns: int, num_chars: int) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": "a" * num_chars} for i in range(num_turns)]
    return [*turns, USER]


TOO_LONG = [
    (CHAT, {"messages": history(2, 4000)}, "messages", "8010 characters; at most 8000"),
    (CHAT, {"messages": history(256, 1)}, "messages", "257 given; at most 256"),
    (CHAT, {"messages": history(4, 100_000)}, "messages", "bytes or more; at most 262144"),
    (CHAT, {"messages": history(2000, 200)}, "messages", "at most 262144"),
    (TEXT, {"prompt": "a" * 8001}, "prompt", "8001 characters; at most 8000"),
    (TEXT, {"prompt": ["a", "a" * 8001]}, "prompt.1", "8001 characters; at most 8000"),
    (TEXT, {"prompt": [0] * 8001}, "prompt", "8001 token ids; at most 8000"),
    (TEXT, {"prompt": "a" * 300_000}, "prompt", "at most 262144"),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), TOO_LONG)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_over_long_history_has_openais_code(
    client: httpx.AsyncClient,
    backend: SmallBackend,
    path: str,
    body: dict[str, Any],
    param: str,
    words: str,
    stream: bool,
) -> None:
    response = await client.post(path, json={**body, "stream": stream})
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "this model's maximum context length is" in error["message"]
    assert words in error["message"]
    assert backend.calls == []


@pytest.mark.parametrize("code", ["prompt_too_long", "output_too_long"])
@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_finds_too_long_has_it_too(
    client: httpx.AsyncClient,
    backend: SmallBackend,
    code: str,
    path: str,
    body: dict[str, Any],
    stream: bool,
) -> None:
    backend.error = ErrorInfo(code, "the prompt is 1600 tokens long", "question")
    response = await client.post(path, json={**body, "stream": stream})
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == ("messages" if path == CHAT else "prompt")
    assert error["message"] == "the prompt is 1600 tokens long"
    asked = await client.post("/ask", json={"question": "a rash", "stream": stream})
    assert (asked.status_code, error_of(asked)["code"]) == (400, code)


@pytest.mark.slow
async def test_langchain_and_openai_know_it(backend: SmallBackend) -> None:
    from langchain_core.exceptions import ContextOverflowError
    from langchain_openai import ChatOpenAI

    transport = httpx.ASGITransport(create_api(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic/v1") as http:
        options: Any = {"base_url": "http://clinic/v1", "api_key": "unused", "max_retries": 0}
        model = ChatOpenAI(model="auto", http_async_client=http, **options)
        with pytest.raises(ContextOverflowError):
            await model.ainvoke("a" * 8001)
        client = openai.AsyncOpenAI(http_client=http, **options)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="auto", prompt="a" * 8001)
    assert refused.value.code == "context_length_exceeded"
