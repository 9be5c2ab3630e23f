"""POST /ask: streams, second opinions, sessions, and what each is charged."""

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import pytest

from deployments.engine.request import ErrorInfo, FinishReason, TokenEvent
from deployments.messages import GenerateRequest
from router.policy import Reason
from tests.deployments.api.ask.conftest import Caller, ClinicOfFour, ask, events_of
from tests.deployments.conftest import ADVICE, error_of


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
    async def refuse(call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        backend.calls.append(call)
        backend.num_closed += 1
        full = ErrorInfo("queue_full", "full", retry_after_s=2)
        yield backend._event(call, "", 0, FinishReason.ERROR, full)

    monkeypatch.setattr(backend, "generate", refuse)
    for fields in ({}, {"consult": 3}):
        response = await ask(client, stream=True, **fields)
        assert (response.status_code, error_of(response)["code"]) == (503, "queue_full")
        assert response.headers["retry-after"] == "2"


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": None},
        {"stream": False, "consult": None, "specialty": None, "min_confidence": None},
        {"max_tokens": None, "timeout_s": None, "session_id": None, "grounding": None},
        {"a_field_of_the_future": None},
    ],
)
async def test_what_asks_for_nothing_is_accepted(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    response = await ask(client, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"


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
    ({"stream": "yes"}, "stream", "valid boolean"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED)
async def test_what_is_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, words: str
) -> None:
    response = await ask(client, **fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert words in error_of(response)["message"]


async def test_several_opinions_are_advised_once(
    client: httpx.AsyncClient, backend: ClinicOfFour
) -> None:
    """The first answer that there is begins with the advice, also where the first opinion fails."""
    asked = {"question": "his face droops", "consult": 3}
    failures: tuple[set[str | None], ...] = (set(), {"dermatology-1"})
    for failing in failures:
        backend.failing = failing
        body = (await client.post("/ask", json=asked)).json()
        advised = [
            opinion["answer"].startswith(ADVICE)
            for opinion in body["opinions"]
            if opinion["answer"] is not None
        ]
        assert advised == [True] + [False] * (len(advised) - 1)
        assert body["answer"].startswith(ADVICE)
        reply = await client.post("/ask", json={**asked, "stream": True})
        assert reply.text.count(json.dumps(ADVICE)) == 1
        first_text = next(line for line in reply.text.splitlines() if '"text"' in line)
        assert json.loads(first_text[6:])["text"] == ADVICE
