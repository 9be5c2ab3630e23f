"""A clock that is set while answers are generated ends none of them, and lets none go on."""

import asyncio
import time
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import httpx
import pytest

from deployments.api import generation
from deployments.api.app import create_api
from deployments.engine.request import FinishReason, TokenEvent
from deployments.messages import GenerateRequest
from tests.deployments.conftest import SmallBackend


class Jumping(SmallBackend):
    """The clock is set after the first piece; then comes the rest, or nothing any more."""

    def __init__(self, seconds: float, hangs: bool, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.seconds, self.hangs, self.patch = seconds, hangs, patch

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        yield self._event(call, "one", 1, None)
        clock = SimpleNamespace(time=lambda: time.time() + self.seconds, monotonic=time.monotonic)
        self.patch.setattr(generation, "time", clock)
        if self.hangs:
            await asyncio.sleep(60)
        yield self._event(call, " two", 2, FinishReason.STOP)


@pytest.mark.parametrize("seconds", [-86_400.0, -30.0, 30.0, 86_400.0])
@pytest.mark.parametrize("hangs", [False, True])
async def test_an_answer_ends_at_its_deadline_whatever_the_clock_says(
    seconds: float, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "GRACE_S", 0.1)
    backend = Jumping(seconds, hangs, monkeypatch)
    transport = httpx.ASGITransport(create_api(backend, None))
    started = time.monotonic()
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        body = {"question": "one two", "timeout_s": 0.4 if hangs else 20}
        answer = (await client.post("/ask", json=body)).json()
    assert time.monotonic() - started < 5
    assert answer["finish_reason"] == ("timeout" if hangs else "stop")
