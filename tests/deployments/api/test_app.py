"""The HTTP face with a small backend (conftest.py): shapes, streaming, statuses."""

import dataclasses
import json
from typing import Any

import httpx
import pytest

from deployments.engine.request import ErrorInfo
from tests.deployments.conftest import SECRET, UNCACHED, SmallBackend, error_of


async def test_ask_says_who_answered_and_why(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    headers = {"x-request-id": "abc-1"}
    response = await client.post("/ask", json={"question": "a red rash"}, headers=headers)
    assert response.status_code == 200
    assert response.headers["x-request-id"] == "abc-1"
    body = response.json()
    assert body.pop("timings_ms").keys() == {"route", "queue", "first_token", "total"}
    assert body == {
        "id": "abc-1",
        "session_id": None,
        "answer": "A RED RASH",
        "specialty": "dermatology",
        "confidence": 0.9877,
        "adapter": "derm-1",
        "adapter_version": "3",
        "reason": "confident",
        "in_scope": True,
        "alternatives": [
            {"specialty": "dermatology", "probability": 0.9877},
            {"specialty": "cardiology", "probability": 0.0123},
        ],
        "evidence": ["rash"],
        "language": "en",
        "notice": None,
        "notices": [],
        "red_flags": [],
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, **UNCACHED, "completion_tokens": 3, "total_tokens": 10},
    }
    (call,) = backend.calls
    assert (call.adapter, call.stream, call.answer_language) == ("derm-1", False, None)
    assert call.sampling.max_tokens == backend.clinic.default_output_tokens
    assert [o.outcome for o in backend.outcomes] == ["stop"]


async def test_an_explicit_specialty_skips_the_router(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    asked = {"question": "heart", "specialty": "cardiology", "max_tokens": 5}
    body = (await client.post("/ask", json=asked)).json()
    assert (body["specialty"], body["adapter"], body["reason"]) == ("cardiology", None, "explicit")
    assert backend.classified == []
    assert backend.calls[0].sampling.max_tokens == 5


async def test_a_language_that_the_base_does_not_write(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    body = (await client.post("/ask", json={"question": "Bonjour docteur"})).json()
    assert body["notice"] == "language_not_supported"
    assert backend.calls[0].answer_language == "English"


async def test_route_classifies_without_answering(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    body = (await client.post("/route", json={"questions": ["one", "Bonjour"]})).json()
    assert [r["notice"] for r in body["routes"]] == [None, "language_not_supported"]
    assert {"specialty", "confidence", "adapter", "reason", "in_scope", "alternatives"} <= set(
        body["routes"][0]
    )
    assert backend.calls == []


@pytest.mark.parametrize("turn", ["42", "120/80", "+", "\N{THUMBS UP SIGN}", "皮疹"])
@pytest.mark.parametrize("is_last", [True, False])
async def test_a_turn_without_a_letter_stays_in_the_conversation(
    client: httpx.AsyncClient, backend: SmallBackend, turn: str, is_last: bool
) -> None:
    contents = ["a red rash", turn] if is_last else ["a red rash", "", turn, "and now?"]
    messages = []
    for content in contents:
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
    response = await client.post("/v1/chat/completions", json={"messages": messages[:-1]})
    assert response.status_code == 200, response.text
    assert backend.classified == [[text for text in contents if text.startswith("a")]]
    assert [t.content for t in backend.calls[0].turns if t.role == "user"] == contents


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (["a red rash", " "], "messages.2.content: empty"),
        (["42", ""], "messages.0.content: no letter"),
        (["42", "皮疹"], "messages.0.content: no letter"),
    ],
)
async def test_a_conversation_of_which_nothing_can_be_classified(
    client: httpx.AsyncClient, contents: list[str], words: str
) -> None:
    messages = []
    for content in contents:
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
    response = await client.post("/v1/chat/completions", json={"messages": messages[:-1]})
    assert response.status_code == 400
    assert words in error_of(response)["message"]


async def test_chat_whole(client: httpx.AsyncClient, backend: SmallBackend) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "FIRST"},
        {"role": "user", "content": [{"type": "text", "text": "and then"}]},
    ]
    asked = {"messages": messages, "n": 1, "tools": [], "response_format": {"type": "text"}}
    response = await client.post("/v1/chat/completions", json=asked)
    body = response.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == "derm-1"
    assert body["choices"][0]["message"]["content"] == "AND THEN"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["polyclinic"]["specialty"] == "dermatology"
    assert backend.classified == [["first", "and then"]]
    assert [turn.role for turn in backend.calls[0].turns] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def chunks_of(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_chat_stream(client: httpx.AsyncClient, backend: SmallBackend) -> None:
    asked = {
        "model": "auto",
        "messages": [{"role": "user", "content": "one two three"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "stop": ["END"],
        "seed": 3,
        "temperature": 0.5,
        "max_completion_tokens": 9,
    }
    response = await client.post("/v1/chat/completions", json=asked)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(response.text)
    assert chunks[-1] == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[0]["polyclinic"]["adapter"] == "derm-1"
    assert [c["usage"] for c in chunks[:-2]] == [None] * 5
    assert chunks[-3]["polyclinic"]["finish_reason"] == "stop"
    pieces = [c["choices"][0]["delta"]["content"] for c in chunks[1:-2]]
    assert pieces == ["ONE", " TWO", " THREE", ""]
    assert [c["choices"][0]["finish_reason"] for c in chunks[1:-2]] == [None, None, None, "stop"]
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["completion_tokens"] == 3
    sampling = backend.calls[0].sampling
    assert (sampling.stop, sampling.seed, sampling.temperature) == (("END",), 3, 0.5)
    assert sampling.max_tokens == 9


async def test_a_stream_that_breaks_ends_in_an_error_event(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    backend.break_after = 1
    asked = {"messages": [{"role": "user", "content": "one two"}], "stream": True}
    chunks = chunks_of((await client.post("/v1/chat/completions", json=asked)).text)
    assert chunks[-1]["error"]["code"] == "replica_lost"
    assert chunks[-1]["error"]["request_id"] == backend.calls[0].request_id
    assert [o.outcome for o in backend.outcomes] == ["replica_lost"]


async def test_completions(client: httpx.AsyncClient, backend: SmallBackend) -> None:
    body = (await client.post("/v1/completions", json={"model": "base", "prompt": "hi"})).json()
    assert (body["object"], body["model"]) == ("text_completion", "base")
    assert body["choices"][0]["text"] == "HI"
    asked = {"model": "derm-1", "prompt": "hi you", "stream": True}
    chunks = chunks_of((await client.post("/v1/completions", json=asked)).text)
    assert "".join(c["choices"][0]["text"] for c in chunks[:-1]) == "HI YOU"


async def test_models_and_health(client: httpx.AsyncClient, backend: SmallBackend) -> None:
    body = (await client.get("/v1/models")).json()
    assert [m["id"] for m in body["data"]] == ["auto", "derm-1", "base"]
    for model in body["data"]:
        assert (await client.get(f"/v1/models/{model['id']}")).json() == model
    unknown = await client.get("/v1/models/gpt-4")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready", "adapters": []}
    backend.error = ErrorInfo("engine_stopped", "down")
    assert (await client.get("/readyz")).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status"),
    [("prompt_too_long", 400), ("queue_full", 503), ("engine_stopped", 503), ("odd", 500)],
)
async def test_engine_errors_have_statuses(
    client: httpx.AsyncClient, backend: SmallBackend, code: str, status: int, stream: bool
) -> None:
    retry = 2 if status == 503 else None
    backend.error = ErrorInfo(code, "why, and what to do", retry_after_s=retry)
    asked = {"messages": [{"role": "user", "content": "hello"}], "stream": stream}
    response = await client.post("/v1/chat/completions", json=asked)
    assert response.status_code == status
    assert error_of(response)["message"] == "why, and what to do"
    assert response.headers.get("retry-after") == ("2" if retry else None)
    assert [o.outcome for o in backend.outcomes] == [code]


async def test_an_unexpected_failure_is_a_500_without_its_text(
    client: httpx.AsyncClient, backend: SmallBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.raises = ValueError(SECRET)
    response = await client.post("/ask", json={"question": SECRET})
    assert response.status_code == 500
    assert SECRET not in response.text
    assert "unexpected ValueError on /ask" in caplog.text


async def test_emoji_inside_a_sentence_is_fine(client: httpx.AsyncClient) -> None:
    question = "My rash itches \N{FACE WITH THERMOMETER}, é à ï?"
    assert (await client.post("/ask", json={"question": question})).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_is_a_length_for_openais_clients_and_true_in_our_part(
    client: httpx.AsyncClient, backend: SmallBackend, stream: bool
) -> None:
    backend.times_out_after = 2
    asked = {"prompt": "one two three", "stream": stream}
    response = await client.post("/v1/completions", json=asked)
    ending = chunks_of(response.text)[-2] if stream else response.json()
    assert ending["choices"][0]["finish_reason"] == "length"
    assert ending["polyclinic"]["finish_reason"] == "timeout"
    assert ending["polyclinic"]["usage"]["completion_tokens"] == 2


async def test_samplings_that_vllm_has_too(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    more = {"top_k": 5, "repetition_penalty": 1.2, "min_tokens": 3, "user": "u-1", "top_p": 0.9}
    asked = {"prompt": "hi", "temperature": 0.7, "max_tokens": 8, **more}
    assert (await client.post("/v1/completions", json=asked)).status_code == 200
    sampling = backend.calls[0].sampling
    assert (sampling.top_k, sampling.repetition_penalty, sampling.min_tokens) == (5, 1.2, 3)
    assert sampling.top_p == 0.9


async def test_the_base_models_defaults_against_loops(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    """A request's own repetition penalty replaces the default, 1.0 (off) too."""
    backend.clinic = dataclasses.replace(
        backend.clinic, repetition_penalty=1.1, no_repeat_ngram_size=6, loop_words=4
    )
    await client.post("/ask", json={"question": "rash"})
    chat = {"messages": [{"role": "user", "content": "rash"}]}
    await client.post("/v1/chat/completions", json=chat)
    await client.post("/v1/chat/completions", json=chat | {"repetition_penalty": 1.0})
    found = [
        (s.repetition_penalty, s.no_repeat_ngram_size, s.loop_words)
        for s in (call.sampling for call in backend.calls)
    ]
    assert found == [(1.1, 6, 4), (1.1, 6, 4), (1.0, 6, 4)]
