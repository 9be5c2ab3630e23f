"""POST /ask: streams, second opinions, deadlines, sessions, and what each is charged."""

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from deployments import answering
from deployments.api import create_api
from deployments.calls import AdapterCard, GenerationCall
from deployments.engine.request import ErrorInfo, FinishReason, TokenEvent
from router.policy import Alternative, Reason, Route
from tests.deployments.conftest import SmallBackend, error_of

LOST = ErrorInfo("replica_lost", "lost", retry_after_s=5)
CARDS = ("dermatology", "cardiology", "neurology", "oncology")


class ClinicOfFour(SmallBackend):
    """Four specialists. Adapters of `failing` fail; each call notes who else runs at the time."""

    def __init__(self) -> None:
        super().__init__()
        cards = tuple(AdapterCard(f"{name}-1", name, "2") for name in CARDS)
        self.clinic = dataclasses.replace(self.clinic, adapters=cards, specialties=CARDS)
        self.failing: set[str | None] = set()
        self.stalls_after: int | None = None
        self.num_running = 0
        self.most_running = 0

    def _route(self, question: str, min_confidence: float) -> Route:
        ranked = tuple(
            Alternative(name, p) for name, p in zip(CARDS, (0.4, 0.3, 0.2), strict=False)
        )
        return dataclasses.replace(super()._route(question, min_confidence), specialists=ranked)

    def explicit(self, specialty: str | None, question: str) -> Route:
        route = super().explicit(specialty, question)
        return dataclasses.replace(route, adapter=f"{specialty}-1" if specialty else None)

    async def generate(self, call: GenerationCall) -> AsyncGenerator[TokenEvent, None]:
        self.calls.append(call)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        words = [str(call.adapter), *call.turns[-1].content.split()]
        try:
            for count, word in enumerate(words, start=1):
                await asyncio.sleep(0)
                if call.adapter in self.failing and count > 1:
                    yield self._event(call, "", count, FinishReason.ERROR, LOST)
                    return
                if self.stalls_after is not None and count > self.stalls_after:
                    await asyncio.sleep(60)
                last = count == len(words)
                if call.stream or last:
                    text = f"{word} " if call.stream else " ".join(words)
                    yield self._event(call, text, count, FinishReason.STOP if last else None)
        finally:
            self.num_running -= 1
            self.num_closed += 1


class Caller:
    def __init__(self) -> None:
        self.charges: list[int] = []

    def charge(self, num_tokens: int) -> None:
        self.charges.append(num_tokens)


@pytest.fixture
def backend() -> ClinicOfFour:
    return ClinicOfFour()


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.fixture
async def client(backend: ClinicOfFour, caller: Caller) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(backend)

    async def with_caller(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {"caller": caller}}, receive, send)

    transport = httpx.ASGITransport(with_caller)
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
        yield client
    assert backend.num_closed == len(backend.calls)
    assert backend.num_running == 0
    assert len(backend.outcomes) == len(backend.calls), "an answer was not recorded once"


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/ask", json={"question": "a red rash", **fields})


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


async def test_a_stream_opens_with_the_route_and_ends_once(
    client: httpx.AsyncClient, caller: Caller
) -> None:
    response = await ask(client, stream=True, session_id="visit-7")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert [name for name, _ in events] == ["route", *["token"] * 4, "answer", "done"]
    route = events[0][1]
    assert (route["id"], route["session_id"]) == (response.headers["x-request-id"], "visit-7")
    assert (route["adapter"], route["reason"]) == ("derm-1", "confident")
    head = {
        "opinion": 0,
        "specialty": "dermatology",
        "probability": 0.9877,
        "adapter": "derm-1",
        "adapter_version": None,
    }
    assert route["opinions"] == [head]
    assert "".join(data["text"] for name, data in events if name == "token") == "derm-1 a red rash "
    answer = events[-2][1]
    assert (answer["opinion"], answer["finish_reason"]) == (0, "stop")
    assert answer["usage"]["total_tokens"] == 11
    assert events[-1][1] == {"id": route["id"]}
    assert caller.charges == [11]


async def test_opinions_are_side_by_side_the_most_probable_first(
    client: httpx.AsyncClient, backend: ClinicOfFour, caller: Caller
) -> None:
    body = (await ask(client, consult=3, session_id="visit-7")).json()
    opinions = body["opinions"]
    assert [o["specialty"] for o in opinions] == ["dermatology", "cardiology", "neurology"]
    assert [o["probability"] for o in opinions] == [0.4, 0.3, 0.2]
    assert [o["answer"] for o in opinions] == [f"{o['adapter']} a red rash" for o in opinions]
    assert {o["adapter_version"] for o in opinions} == {"2"}
    assert all(o["error"] is None and o["usage"]["total_tokens"] == 11 for o in opinions)
    for key in ("answer", "adapter", "adapter_version", "specialty", "usage", "finish_reason"):
        assert body[key] == opinions[0][key]
    assert backend.most_running == 3
    assert len({call.request_id for call in backend.calls}) == 3
    assert {call.session_id for call in backend.calls} == {"visit-7"}
    assert caller.charges == [33]


async def test_opinions_are_streamed_side_by_side(
    client: httpx.AsyncClient, backend: ClinicOfFour, caller: Caller
) -> None:
    events = events_of((await ask(client, consult=2, stream=True)).text)
    assert [head["adapter"] for head in events[0][1]["opinions"]] == [
        "dermatology-1",
        "cardiology-1",
    ]
    for opinion, adapter in enumerate(("dermatology-1", "cardiology-1")):
        mine = [d["text"] for n, d in events if n == "token" and d["opinion"] == opinion]
        assert "".join(mine) == f"{adapter} a red rash "
    assert sorted(d["opinion"] for n, d in events if n == "answer") == [0, 1]
    speakers = [d["opinion"] for n, d in events if n == "token"]
    assert speakers != sorted(speakers), "one after the other"
    assert events[-1][0] == "done"
    assert caller.charges == [22]


async def test_an_unsure_router_is_consulted_a_stranger_gets_the_base_alone(
    client: httpx.AsyncClient,
) -> None:
    body = (await ask(client, consult=2, min_confidence=0.99)).json()
    assert body["reason"] == "low_confidence"
    assert [o["specialty"] for o in body["opinions"]] == ["dermatology", "cardiology"]
    body = (await ask(client, question="who won the football", consult=3)).json()
    assert body["reason"] == Reason.OUT_OF_SCOPE
    assert [(o["specialty"], o["probability"], o["adapter"]) for o in body["opinions"]] == [
        (None, None, None)
    ]


async def test_the_requests_own_threshold(client: httpx.AsyncClient) -> None:
    assert (await ask(client, min_confidence=0.9)).json()["reason"] == "confident"
    unsure = (await ask(client, min_confidence=0.99)).json()
    assert (unsure["reason"], unsure["adapter"]) == ("low_confidence", None)


async def test_one_failed_opinion_is_named_and_the_others_stand(
    client: httpx.AsyncClient, backend: ClinicOfFour, caller: Caller
) -> None:
    backend.failing = {"dermatology-1"}
    body = (await ask(client, consult=2)).json()
    failed, standing = body["opinions"]
    assert (failed["answer"], failed["error"]["code"]) == (None, "replica_lost")
    assert standing["error"] is None
    assert (body["adapter"], body["answer"]) == ("cardiology-1", standing["answer"])
    events = events_of((await ask(client, consult=2, stream=True)).text)
    answers = {d["opinion"]: d for n, d in events if n == "answer"}
    assert answers[0]["error"]["code"] == "replica_lost"
    assert answers[1]["finish_reason"] == "stop"
    assert events[-1][0] == "done"
    assert caller.charges == [11, 11], "a failure of ours was charged"


async def test_when_all_fail_the_first_failure_is_the_answer(
    client: httpx.AsyncClient, backend: ClinicOfFour, caller: Caller
) -> None:
    backend.failing = {"dermatology-1", "cardiology-1"}
    response = await ask(client, consult=2)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert error_of(response)["code"] == "replica_lost"
    response = await ask(client, consult=2, stream=True)  # both have begun: a 200, then an error
    events = events_of(response.text)
    assert [name for name, _ in events][-1] == "error"
    assert sum(name in ("error", "done") for name, _ in events) == 1
    assert events[-1][1]["error"]["request_id"] == response.headers["x-request-id"]
    assert caller.charges == []


async def test_a_failure_before_anything_was_said_has_its_own_status(
    client: httpx.AsyncClient, backend: ClinicOfFour, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(call: GenerationCall) -> AsyncGenerator[TokenEvent, None]:
        backend.calls.append(call)
        backend.num_closed += 1
        full = ErrorInfo("queue_full", "full", retry_after_s=2)
        yield backend._event(call, "", 0, FinishReason.ERROR, full)

    monkeypatch.setattr(backend, "generate", refuse)
    for fields in ({}, {"consult": 3}):
        response = await ask(client, stream=True, **fields)
        assert (response.status_code, error_of(response)["code"]) == (503, "queue_full")
        assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_before_anything_was_generated_is_a_408(
    client: httpx.AsyncClient, backend: ClinicOfFour, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(answering, "GRACE_S", 0.02)
    backend.stalls_after = 0
    started = time.monotonic()
    response = await ask(client, stream=stream, timeout_s=0.05)
    assert time.monotonic() - started < 5
    assert (response.status_code, error_of(response)["code"]) == (408, "deadline_exceeded")
    assert [o.outcome for o in backend.outcomes] == ["timeout"]


async def test_a_deadline_in_mid_stream_ends_the_answer_as_it_is(
    client: httpx.AsyncClient,
    backend: ClinicOfFour,
    caller: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answering, "GRACE_S", 0.02)
    backend.stalls_after = 2
    events = events_of((await ask(client, stream=True, timeout_s=0.05)).text)
    assert [name for name, _ in events] == ["route", "token", "token", "answer", "done"]
    assert events[-2][1]["finish_reason"] == "timeout"
    assert events[-2][1]["usage"]["completion_tokens"] == 2
    assert caller.charges == [9]


async def test_the_deadline_goes_with_the_call(
    client: httpx.AsyncClient, backend: ClinicOfFour
) -> None:
    await ask(client, timeout_s=20)
    await ask(client)
    given, default = (call.deadline_at for call in backend.calls)
    assert given == pytest.approx(time.time() + 20, abs=5)
    assert default == pytest.approx(time.time() + backend.limits.max_timeout_s, abs=5)


@pytest.mark.parametrize("consult", [None, 2])
async def test_a_client_that_leaves_cancels_and_is_charged_what_is_known(
    backend: ClinicOfFour, caller: Caller, consult: int | None
) -> None:
    """Straight at the ASGI application: httpx's transport reads a stream to its end."""
    backend.stalls_after = 2
    body = json.dumps({"question": "a red rash", "stream": True, "consult": consult}).encode()
    has_begun = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not has_begun.is_set():
            has_begun.set()
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/ask",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "state": {"caller": caller},
    }
    await asyncio.wait_for(create_api(backend)(scope, receive, send), timeout=10)  # type: ignore[arg-type]
    assert any(b"event: token" in message.get("body", b"") for message in sent)
    assert backend.num_running == 0
    assert {o.outcome for o in backend.outcomes} == {"cancelled"}
    assert caller.charges == [9 * (consult or 1)]


REFUSED: Sequence[tuple[dict[str, Any], str, str]] = [
    ({"consult": 0}, "consult", "greater than or equal to 1"),
    ({"consult": 4}, "consult", "less than or equal to 3"),
    ({"consult": 2, "specialty": "dermatology"}, "consult", "send consult or specialty"),
    ({"min_confidence": 0.5, "specialty": "oncology"}, "min_confidence", "router is not asked"),
    ({"min_confidence": 1.5}, "min_confidence", "less than or equal to 1"),
    ({"timeout_s": 0}, "timeout_s", "greater than 0"),
    ({"timeout_s": 1e6}, "timeout_s", "limit of 280"),
    ({"session_id": ""}, "session_id", "pattern"),
    ({"session_id": "a b"}, "session_id", "pattern"),
    ({"session_id": "a\n"}, "session_id", "pattern"),
    ({"session_id": "x" * 129}, "session_id", "pattern"),
    ({"stream": None}, "stream", "valid boolean"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
async def test_what_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, words: str
) -> None:
    response = await ask(client, **fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert words in error_of(response)["message"]
