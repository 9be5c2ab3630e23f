"""The HTTP face with a small backend: shapes, streaming, and every bad input of the issue."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import httpx
import pytest

from deployments.api import create_api
from deployments.calls import AdapterCard, Clinic, GenerationCall, Outcome
from deployments.engine.request import ErrorInfo, FinishReason, Timings, TokenEvent
from deployments.settings import RouterLiveSettings
from router.policy import Alternative, Reason, Route

SECRET = "zebrafish"  # stands for a patient's words: it may appear in no log record


class SmallBackend:
    """Echoes: the answer is the last user turn in capitals, word by word."""

    def __init__(self) -> None:
        self.limits = RouterLiveSettings()
        self.clinic = Clinic(
            base_model="tiny",
            adapters=(AdapterCard("derm-1", "dermatology", "3"),),
            specialties=("cardiology", "dermatology"),
            default_output_tokens=16,
            max_output_tokens=64,
            started_at=1,
        )
        self.calls: list[GenerationCall] = []
        self.classified: list[list[str]] = []
        self.outcomes: list[Outcome] = []
        self.num_closed = 0
        self.error: ErrorInfo | None = None
        self.raises: Exception | None = None
        self.break_after: int | None = None

    async def classify(self, conversations: Sequence[Sequence[str]]) -> list[Route]:
        if self.raises:
            raise self.raises
        self.classified += [list(turns) for turns in conversations]
        return [self._route(turns[-1]) for turns in conversations]

    def _route(self, question: str) -> Route:
        foreign = question.startswith("Bonjour")
        return Route(
            specialty="dermatology",
            adapter="derm-1",
            confidence=0.98765,
            reason=Reason.CONFIDENT,
            in_scope=True,
            alternatives=(Alternative("dermatology", 0.98765), Alternative("cardiology", 0.01235)),
            evidence=("rash",),
            language="fr" if foreign else "en",
            notice="language_not_supported" if foreign else None,
        )

    def explicit(self, specialty: str | None, question: str) -> Route:
        return Route(
            specialty=specialty,
            adapter="derm-1" if specialty == "dermatology" else None,
            confidence=None,
            reason=Reason.EXPLICIT if specialty else Reason.BASE_REQUESTED,
            in_scope=None,
            alternatives=(),
            evidence=(),
            language="en",
            notice=None,
        )

    def answer_language(self, route: Route) -> str | None:
        return "English" if route.notice else None

    async def generate(self, call: GenerationCall) -> AsyncGenerator[TokenEvent, None]:
        self.calls.append(call)
        try:
            if self.error:
                yield self._event(call, "", 0, FinishReason.ERROR, self.error)
                return
            words = call.turns[-1].content.upper().split(" ")
            for count, word in enumerate(words, start=1):
                if self.break_after is not None and count > self.break_after:
                    lost = ErrorInfo("replica_lost", "lost", retry_after_s=5)
                    yield self._event(call, "", count, FinishReason.ERROR, lost)
                    return
                text = word if count == 1 else f" {word}"
                last = count == len(words)
                yield self._event(call, text, count, FinishReason.STOP if last else None)
        finally:
            self.num_closed += 1

    def _event(
        self,
        call: GenerationCall,
        text: str,
        count: int,
        reason: FinishReason | None,
        error: ErrorInfo | None = None,
    ) -> TokenEvent:
        timings = Timings(0.001, 0.0125, 0.5)
        return TokenEvent(call.request_id, text, count, 7, timings, reason, error)

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        return self.error is None, {"adapters": []}

    def record(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def backend() -> SmallBackend:
    return SmallBackend()


@pytest.fixture
async def client(
    backend: SmallBackend, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[httpx.AsyncClient]:
    caplog.set_level(logging.DEBUG)
    transport = httpx.ASGITransport(create_api(backend))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
        yield client
    assert backend.num_closed == len(backend.calls), "a generation was left open"
    ours = [r for r in caplog.records if r.name.startswith("deployments")]
    assert SECRET not in "".join(record.getMessage() for record in ours)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


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
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
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


ASK_REFUSALS = [
    ({"question": ""}, 400, "question", "empty"),
    ({"question": " \n\t "}, 400, "question", "empty"),
    ({"question": 7}, 400, "question", "valid string (got 7)"),
    ({"question": None}, 400, "question", "valid string (got None)"),
    ({"question": ["a"]}, 400, "question", "got a JSON array"),
    ({}, 400, "question", "required, and missing"),
    ([], 400, None, "the body is a JSON array"),
    ("rash", 400, None, "the body is a JSON string"),
    ({"question": "x" * 100_000}, 400, "question", "100000 characters; at most 8000"),
    ({"question": "rash", "qestion": 1}, 400, "qestion", "did you mean 'question'?"),
    ({"question": "rash", "max_tokens": -1}, 400, "max_tokens", "greater than or equal to 1"),
    ({"question": "rash", "max_tokens": 0}, 400, "max_tokens", "(got 0)"),
    ({"question": "rash", "max_tokens": 10**9}, 400, "max_tokens", "limit of 64"),
    ({"question": "rash", "max_tokens": 3.5}, 400, "max_tokens", "valid integer (got 3.5)"),
    ({"question": "rash", "max_tokens": True}, 400, "max_tokens", "got True"),
    ({"question": "rash", "max_tokens": "9"}, 400, "max_tokens", "valid integer (got '9')"),
    ({"question": "rash", "specialty": "dermatolgy"}, 404, "specialty", "mean 'dermatology'?"),
    ({"question": "rash", "specialty": "x" * 9999}, 404, "specialty", "cardiology, dermatology"),
    ({"question": "\N{FACE WITH THERMOMETER}" * 3}, 400, "question", "no letters at all"),
    ({"question": "لدي طفح جلدي"}, 400, "question", "found ARABIC"),
    ({"question": "皮疹"}, 400, "question", "found CJK"),
    ({"question": "12345 ?!"}, 400, "question", "no letters at all"),
    ({"question": "rash\x00"}, 400, "question", "U+0000 at position 4"),
    ({"question": "ra\x1b[31msh"}, 400, "question", "U+001B at position 2"),
    ({"question": "rash \ud800"}, 400, "question", "U+D800 at position 5"),
]


@pytest.mark.parametrize(("body", "status", "param", "words"), ASK_REFUSALS)
async def test_bad_questions(
    client: httpx.AsyncClient,
    backend: SmallBackend,
    body: Any,
    status: int,
    param: str | None,
    words: str,
) -> None:
    content = json.dumps(body)
    headers = {"content-type": "application/json"}
    response = await client.post("/ask", content=content, headers=headers)
    assert response.status_code == status
    error = error_of(response)
    assert error["param"] == param
    assert words in error["message"]
    assert backend.calls == []
    assert len(error["message"]) < 500


CHAT_REFUSALS = [
    ({"model": "gpt-4"}, 404, "model", "known: auto, base, derm-1"),
    ({"temperature": float("nan")}, 400, "temperature", "finite number (got nan)"),
    ({"temperature": -0.1}, 400, "temperature", "greater than or equal to 0"),
    ({"temperature": 1e9}, 400, "temperature", "less than or equal to 2"),
    ({"top_p": 0}, 400, "top_p", "greater than 0"),
    ({"n": 2}, 400, "n", "not supported by this server (got 2)"),
    ({"logprobs": True}, 400, "logprobs", "not supported"),
    ({"tools": [{}]}, 400, "tools", "not supported"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
    ({"max_token": 5}, 400, "max_token", "did you mean 'max_tokens'?"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_completion_tokens", "differ"),
    ({"stop": ""}, 400, "stop", "empty string"),
    ({"stop": ["a"] * 5}, 400, "stop", "at most 4"),
    ({"stream": "yes"}, 400, "stream", "valid boolean"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream: true"),
    ({"messages": []}, 400, "messages", "at least 1"),
    ({"messages": "hello"}, 400, "messages", "valid list"),
    ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "required"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role", "'user'"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "must be the user"),
    ({"messages": [{"role": "user", "content": " "}]}, 400, "messages.0.content", "empty"),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        400,
        "messages.1.role",
        "only allowed as first",
    ),
    (
        {"messages": [{"role": "user", "content": "a" * 5000}] * 2},
        400,
        "messages",
        "10000 characters; at most 8000",
    ),
]


@pytest.mark.parametrize(("change", "status", "param", "words"), CHAT_REFUSALS)
async def test_bad_chats(
    client: httpx.AsyncClient, change: dict[str, Any], status: int, param: str, words: str
) -> None:
    body = {"messages": [{"role": "user", "content": "a rash"}], **change}
    headers = {"content-type": "application/json"}
    response = await client.post("/v1/chat/completions", content=json.dumps(body), headers=headers)
    assert response.status_code == status
    error = error_of(response)
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "words"),
    [
        (b"{not json", "application/json", 400, "not JSON"),
        (b"", "application/json", 400, "not JSON"),
        (b'{"question": "caf\xe9"}', "application/json", 400, "not UTF-8 (byte"),
        (b"[" * 100_000, "application/json", 400, "nested too deeply"),
        (b'{"question": "a", "question": "b"}', "application/json", 400, "repeats the key"),
        (b'{"question": "' + b"x" * 2**20 + b'"}', "application/json", 413, "at most 262144"),
        (b"question=rash", "application/x-www-form-urlencoded", 415, "send application/json"),
        (b'{"question": "a rash"}', "", 415, "send application/json"),
    ],
)
async def test_bad_bodies(
    client: httpx.AsyncClient, content: bytes, content_type: str, status: int, words: str
) -> None:
    response = await client.post("/ask", content=content, headers={"content-type": content_type})
    assert response.status_code == status
    assert words in error_of(response)["message"]


async def test_a_body_without_a_length_is_bounded_too(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncGenerator[bytes, None]:
        for _ in range(10_000):
            yield b"x" * 1024

    headers = {"content-type": "application/json"}
    response = await client.post("/ask", content=endless(), headers=headers)
    assert response.status_code == 413


async def test_wrong_method_and_path(client: httpx.AsyncClient) -> None:
    response = await client.get("/ask")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert "use POST" in error_of(response)["message"]
    response = await client.post("/aks", json={})
    assert response.status_code == 404
    assert "/ask" in error_of(response)["message"]


async def test_questions_are_counted_and_each_is_named(client: httpx.AsyncClient) -> None:
    response = await client.post("/route", json={"questions": ["a"] * 257})
    assert "257 given; at most 256" in error_of(response)["message"]
    response = await client.post("/route", json={"questions": ["a rash", ""]})
    assert error_of(response)["param"] == "questions.1"
    response = await client.post("/route", json={"questions": []})
    assert "at least 1" in error_of(response)["message"]


async def test_a_bad_request_id_is_refused(client: httpx.AsyncClient) -> None:
    headers = {"x-request-id": "a b\tc"}
    response = await client.post("/ask", json={"question": "a rash"}, headers=headers)
    assert error_of(response)["param"] == "x-request-id"


async def test_emoji_inside_a_sentence_is_fine(client: httpx.AsyncClient) -> None:
    question = "My rash itches \N{FACE WITH THERMOMETER}, é à ï?"
    assert (await client.post("/ask", json={"question": question})).status_code == 200
