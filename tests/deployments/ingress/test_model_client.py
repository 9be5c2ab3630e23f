"""A lost replica: tried again once while nothing was said, an error afterwards; cancellation."""

import contextlib
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from adapters.prompting import Message
from deployments.engine.request import (
    ErrorInfo,
    FinishReason,
    SamplingParams,
    Timings,
    TokenEvent,
    failed_event,
)
from deployments.ingress.call_guard import NO_MODEL_REPLICA, is_lost
from deployments.ingress.model_client import answer_events
from deployments.messages import GenerateRequest
from tests.deployments.conftest import SmallBackend

CALL = GenerateRequest("r-1", (Message("user", "a rash"),), None, SamplingParams(8), stream=True)


def event(text: str, reason: FinishReason | None = None) -> TokenEvent:
    return TokenEvent("r-1", text, 1, 3, Timings(), reason)


MESSAGES = [{"role": "user", "content": "a rash"}]
DIED = ActorDiedError()
AWAY = ActorUnavailableError("no heartbeat", None)
MOVED = ReplicaUnavailableError("m1")
GONE = DeploymentUnavailableError("Model")  # type: ignore[arg-type]
FULL = BackPressureError(num_queued_requests=9, max_queued_requests=8)
A, B, END = event("a"), event("b"), event("c", FinishReason.STOP)
STOPPED = failed_event("r-1", ErrorInfo("engine_stopped", "the loop died"))
TOO_LONG = failed_event("r-1", ErrorInfo("prompt_too_long", "too long"))


class Open:
    """A guard that lets everything through, and sends again once what was lost."""

    def __init__(self) -> None:
        self.refused: ErrorInfo | None = None
        self.endings: list[str | None] = []

    async def refusal(self, call: GenerateRequest) -> ErrorInfo | None:
        return self.refused

    def waiting(self, response: object) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    async def sends_again(self, call: GenerateRequest, event: TokenEvent, num_sent: int) -> bool:
        return is_lost(event) and num_sent < 2

    def ended(self, call: GenerateRequest, event: TokenEvent) -> None:
        self.endings.append(event.error.code if event.error else None)


class Replicas:
    """What each attempt yields; an exception among them is raised."""

    def __init__(self, *attempts: Sequence[TokenEvent | Exception]) -> None:
        self._attempts = [iter(attempt) for attempt in attempts]
        self.num_calls = 0
        self.num_cancelled = 0

    def start(self, call: GenerateRequest) -> "Replicas":
        assert call is CALL
        self.num_calls += 1
        return self

    @property
    def is_assigned(self) -> bool:
        return True

    async def get(self) -> TokenEvent:
        item = next(self._attempts[self.num_calls - 1])
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        self.num_cancelled += 1


@pytest.mark.parametrize(
    ("attempts", "texts", "code"),
    [
        ([[A, B, END]], "abc", None),
        ([[DIED], [A, END]], "ac", None),
        ([[AWAY], [A, END]], "ac", None),
        ([[STOPPED], [A, END]], "ac", None),
        ([[DIED], [DIED]], "", "replica_lost"),
        ([[DIED], [A, DIED]], "a", "replica_lost"),
        ([[A, DIED]], "a", "replica_lost"),
        ([[A, STOPPED]], "a", "engine_stopped"),
        ([[FULL]], "", "queue_full"),
        ([[MOVED], [A, END]], "ac", None),
        ([[GONE]], "", "no_model_replica"),
        ([[DIED], [GONE]], "", "no_model_replica"),
        ([[A, GONE]], "a", "no_model_replica"),
        ([[RayServeException("no application")]], "", "no_model_replica"),
        ([[DIED], [FULL]], "", "queue_full"),
        ([[TOO_LONG]], "", "prompt_too_long"),
    ],
)
async def test_what_the_client_gets(attempts: Any, texts: str, code: str | None) -> None:
    replicas = Replicas(*attempts)
    events = [found async for found in answer_events(replicas.start, CALL, Open())]
    assert replicas.num_calls == len(attempts)
    assert "".join(found.text for found in events) == texts
    assert [found.finish_reason is not None for found in events].count(True) == 1
    last = events[-1]
    assert last.finish_reason is not None
    assert (last.error.code if last.error else None) == code
    assert replicas.num_cancelled == 0


@pytest.mark.parametrize("attempts", [[[A, B, END]], [[DIED], [A, B, END]]])
async def test_a_client_that_leaves_cancels_the_attempt(attempts: Any) -> None:
    replicas = Replicas(*attempts)
    async with contextlib.aclosing(answer_events(replicas.start, CALL, Open())) as events:
        assert (await anext(events)).text == "a"
    assert replicas.num_cancelled == 1


@pytest.mark.parametrize("path", ["/ask", "/v1/chat/completions"])
async def test_a_model_that_is_gone_is_a_503_with_retry_after(
    path: str, client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    [event] = [found async for found in answer_events(Replicas([GONE]).start, CALL, Open())]
    backend.error = event.error
    body = {"question": "a rash"} if path == "/ask" else {"model": "base", "messages": MESSAGES}
    reply = await client.post(path, json=body)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "10")
    assert reply.json()["error"]["code"] == "no_model_replica"


async def test_other_failures_are_not_taken_for_a_lost_replica() -> None:
    replicas = Replicas([ValueError("bug")])
    with pytest.raises(ValueError, match="bug"):
        [found async for found in answer_events(replicas.start, CALL, Open())]
    assert (replicas.num_calls, replicas.num_cancelled) == (1, 1)


async def test_a_call_that_may_not_be_sent_is_refused_and_recorded() -> None:
    guard, replicas = Open(), Replicas()
    guard.refused = NO_MODEL_REPLICA
    seen: list[TokenEvent] = []
    [event] = [e async for e in answer_events(replicas.start, CALL, guard, seen.append)]
    assert event.error == NO_MODEL_REPLICA
    assert (seen, replicas.num_calls) == ([event], 0)
