"""A clinic of four specialists, its client, a caller who counts tokens, and a reader of streams."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from deployments.api.app import create_api
from deployments.engine.request import ErrorInfo, FinishReason, TokenEvent
from deployments.messages import AdapterCard, GenerateRequest
from router.policy import Alternative, Route
from tests.deployments.conftest import SmallBackend

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

    def explicit(self, specialty: str | None, turns: Sequence[str]) -> Route:
        route = super().explicit(specialty, turns)
        return dataclasses.replace(route, adapter=f"{specialty}-1" if specialty else None)

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
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
    key_id = "k1"

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
