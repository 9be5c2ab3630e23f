"""POST /ask: deadlines, and clients that leave."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from deployments.api import generation
from deployments.api.app import create_api
from tests.deployments.api.ask.conftest import Caller, ClinicOfFour, ask, events_of
from tests.deployments.conftest import error_of


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_before_anything_was_generated_is_a_408(
    client: httpx.AsyncClient, backend: ClinicOfFour, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(generation, "GRACE_S", 0.02)
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
    monkeypatch.setattr(generation, "GRACE_S", 0.02)
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


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("consult", [None, 2])
async def test_a_client_that_leaves_cancels_and_is_charged_what_is_known(
    backend: ClinicOfFour, caller: Caller, consult: int | None, raises: bool
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
        if raises:  # as Ray does
            raise RuntimeError("the task was cancelled")
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
