"""A question with red flags: the notice on every path, and advice before everything else, once."""

import dataclasses
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from deployments.engine.request import ErrorInfo, FinishReason, TokenEvent
from deployments.messages import GenerateRequest
from router.policy import Alternative, Route
from tests.deployments.conftest import ADVICE, SmallBackend

QUESTION = "his face droops"
ANSWER = ADVICE + QUESTION.upper()


async def events(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    reply = await client.post(path, json={**body, "stream": True})
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def is_urgent(route: dict[str, Any]) -> bool:
    found = (route["notice"], route["notices"][:1], route["red_flags"])
    return found == ("urgent", ["urgent"], ["stroke"])


@pytest.mark.parametrize("more", [{}, {"specialty": "dermatology"}, {"consult": 1}])
async def test_an_answer_begins_with_the_advice(
    client: httpx.AsyncClient, more: dict[str, Any]
) -> None:
    asked = {"question": QUESTION, **more}
    body = (await client.post("/ask", json=asked)).json()
    assert is_urgent(body)
    assert body["answer"] == ANSWER
    assert [opinion["answer"] for opinion in body.get("opinions", [])] in ([], [ANSWER])
    route, *rest = await events(client, "/ask", asked)
    assert is_urgent(route)
    assert rest[0] == {"opinion": 0, "text": ADVICE}
    assert "".join(event.get("text", "") for event in rest) == ANSWER


async def test_out_of_scope_and_in_a_language_that_the_base_does_not_write(
    client: httpx.AsyncClient,
) -> None:
    body = (await client.post("/ask", json={"question": f"football: {QUESTION}"})).json()
    assert (body["reason"], body["specialty"], body["notice"]) == ("out_of_scope", None, "urgent")
    assert body["answer"].startswith(ADVICE)
    body = (await client.post("/ask", json={"question": f"Bonjour, {QUESTION}"})).json()
    assert body["notices"] == ["urgent", "language_not_supported"]


async def test_the_answer_ends_as_it_would_without_the_advice(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    body = (await client.post("/ask", json={"question": QUESTION, "max_tokens": 3})).json()
    assert (body["usage"]["completion_tokens"], body["finish_reason"]) == (3, "stop")
    backend.error = ErrorInfo("queue_full", "busy", retry_after_s=1)
    refused = await client.post("/ask", json={"question": QUESTION, "stream": True})
    assert refused.status_code == 503


@pytest.mark.parametrize("model", ["auto", "base", "derm-1"])
async def test_openais_chat(client: httpx.AsyncClient, model: str) -> None:
    asked = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    body = (await client.post("/v1/chat/completions", json=asked)).json()
    assert body["choices"][0]["message"]["content"] == ANSWER
    assert is_urgent(body["polyclinic"])
    opening, first, *rest = await events(client, "/v1/chat/completions", asked)
    assert is_urgent(opening["polyclinic"])
    assert first["choices"][0]["delta"]["content"] == ADVICE
    said = [chunk["choices"][0]["delta"]["content"] for chunk in (first, *rest)]
    assert "".join(said) == ANSWER


async def test_openais_completions(client: httpx.AsyncClient) -> None:
    asked = {"model": "auto", "prompt": QUESTION}
    body = (await client.post("/v1/completions", json=asked)).json()
    assert body["choices"][0]["text"] == ANSWER
    assert is_urgent(body["polyclinic"])
    opening, *rest = await events(client, "/v1/completions", asked)
    assert is_urgent(opening["polyclinic"])
    assert "".join(chunk["choices"][0]["text"] for chunk in rest) == ANSWER


@pytest.mark.parametrize("model", ["auto", "base"])
async def test_each_of_several_prompts_begins_with_its_own_advice(
    client: httpx.AsyncClient, model: str
) -> None:
    """Of three, two have red flags; the choices' chunks come mixed."""
    asked = {"model": model, "prompt": [QUESTION, "a red rash", f"now {QUESTION}"]}
    answers = [ANSWER, "A RED RASH", f"{ADVICE}NOW {QUESTION.upper()}"]
    body = (await client.post("/v1/completions", json=asked)).json()
    assert [choice["text"] for choice in body["choices"]] == answers
    urgent = [is_urgent(choice["polyclinic"]) for choice in body["choices"]]
    assert urgent == [True, False, True]
    assert body["usage"]["completion_tokens"] == 3 + 3 + 4
    chunks = [chunk["choices"][0] for chunk in await events(client, "/v1/completions", asked)]
    for number, answer in enumerate(answers):
        texts = [chunk["text"] for chunk in chunks if chunk["index"] == number]
        assert "".join(texts) == answer
        assert (texts[1] == ADVICE) == urgent[number]


@pytest.mark.parametrize("fails", [False, True])
async def test_opinions_share_one_advice(
    client: httpx.AsyncClient, backend: SmallBackend, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Before the one that begins first, which is the second where the first one fails."""
    classify, generate = backend.classify, backend.generate

    async def two(*asked: Any) -> list[Route]:
        both = (Alternative("dermatology", 0.9), Alternative("cardiology", 0.1))
        return [dataclasses.replace(route, specialists=both) for route in await classify(*asked)]

    async def first_fails(call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        if fails and call.adapter == "derm-1":
            error = ErrorInfo("replica_lost", "lost")
            yield backend._event(call, "", 0, FinishReason.ERROR, error)
            return
        async for event in generate(call):
            yield event

    monkeypatch.setattr(backend, "classify", two)
    monkeypatch.setattr(backend, "generate", first_fails)
    asked = {"question": QUESTION, "consult": 2}
    body = (await client.post("/ask", json=asked)).json()
    expected = [None, ANSWER] if fails else [ANSWER, QUESTION.upper()]
    assert [opinion["answer"] for opinion in body["opinions"]] == expected
    assert body["answer"] == ANSWER
    _, *rest = await events(client, "/ask", asked)
    told = [event["opinion"] for event in rest if event.get("text") == ADVICE]
    begun = next(event["opinion"] for event in rest if event.get("text"))
    assert told == [begun]
    for opinion, answer in enumerate(expected):
        texts = [event.get("text", "") for event in rest if event.get("opinion") == opinion]
        begins = ADVICE if opinion == begun else ""
        assert "".join(texts) == ("" if answer is None else begins + QUESTION.upper())


async def test_classification_says_it_too(client: httpx.AsyncClient) -> None:
    asked = {"questions": [QUESTION, "a red rash"]}
    urgent, calm = (await client.post("/route", json=asked)).json()["routes"]
    assert is_urgent(urgent)
    assert (calm["notice"], calm["notices"], calm["red_flags"]) == (None, [], [])
