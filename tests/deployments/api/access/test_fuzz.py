"""Malformed requests against the API, its front door and a real engine on a tiny model.

None of them may be a 5xx, an exception, half an answer, or a row that stays taken.
"""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from deployments.api.app import create_api
from deployments.engine.core import ThreadCore
from deployments.engine.request import TokenEvent
from deployments.engine.scheduling.loop import StepLoop
from deployments.messages import AdapterCard, GenerateRequest
from deployments.model.deployment import ModelReplica
from deployments.model.loading import load_model
from deployments.settings import parse_settings
from router.policy import Route
from tests.deployments.api.access.conftest import Door
from tests.deployments.api.access.malformed import RECIPES, RawRequest, RawResponse, malformed, send
from tests.deployments.conftest import SmallBackend

SEED = 20261125
AT_ONCE = 24


class EngineBackend(SmallBackend):
    """Routes like the small backend; a real replica of the model answers."""

    def __init__(self, replica: ModelReplica) -> None:
        super().__init__()
        self._replica = replica
        cards = (AdapterCard("derm", "dermatology", "1"), AdapterCard("cardio", "cardiology", "1"))
        self.clinic = dataclasses.replace(
            self.clinic, adapters=cards, default_output_tokens=3, max_output_tokens=64
        )

    async def classify(
        self, conversations: Sequence[Sequence[str]], min_confidence: float | None = None
    ) -> list[Route]:
        routes = await super().classify(conversations, min_confidence)
        return [dataclasses.replace(route, adapter="derm") for route in routes]

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        if not call.stream:  # as the router deployment does it
            yield await self._replica.answer(call)
            return
        async with contextlib.aclosing(self._replica.generate(call)) as events:
            async for event in events:
                yield event


@pytest.fixture(scope="module")
def replica(tiny_catalogs: dict[str, tuple[Path, Path]]) -> Iterator[ModelReplica]:
    base, catalog = tiny_catalogs["llama"]
    engine = {"max_rows": 4, "max_input_tokens": 512, "max_output_tokens": 64}
    engine |= {"default_output_tokens": 3, "cpu_threads": 1}
    settings = parse_settings(
        {"base_model": str(base), "adapters": str(catalog), "device": "cpu", "engine": engine}
    )
    replica = ModelReplica(settings, "cpu", load_model)
    yield replica
    replica._engine.close()


async def settled(replica: ModelReplica) -> None:
    """Every row is free, nothing waits, and the scheduler's books balance."""
    engine = replica._engine
    deadline = time.monotonic() + 10
    while engine.num_running or engine.num_waiting:
        assert time.monotonic() < deadline, f"{engine.num_running} + {engine.num_waiting} rows left"
        await asyncio.sleep(0.005)
    assert isinstance(engine.core, ThreadCore)
    runner = engine.core._runner
    assert isinstance(runner, StepLoop), "the fast decoder is what is to be tested"
    # The loop forgets a cancelled row at its next step, which a task between steps causes.
    for _ in range(2):
        await asyncio.wrap_future(engine.run_between_steps(runner._scheduler.check_invariants))
        await asyncio.sleep(0.01)
    books = runner._scheduler
    assert (books.num_running, books.num_waiting, len(runner._rows)) == (0, 0, 0)
    engine.check()


def check(request: RawRequest, response: RawResponse) -> None:
    what = f"{request.recipe} {request.method} {request.path[:40]!r}"
    status = response.status
    if request.leaves == "in the body":
        assert status in (None, 400, 401, 404, 405, 413, 414, 415, 431), f"{what}: {status}"
        return
    assert status is not None, f"{what}: no answer"
    assert status < 500, f"{what}: {status} {response.body[:300]!r}"
    if request.leaves == "in the answer":
        return
    assert response.is_whole, f"{what}: half an answer"
    if status >= 400 and request.method != "HEAD":
        error = json.loads(response.body)["error"]
        assert error["message"], what
        assert error["code"], what


async def fuzz(door: Door, replica: ModelReplica, number: int) -> Counter[str]:
    app = door.built()
    key = door.key()["authorization"].encode()
    recipes: Counter[str] = Counter()
    statuses: Counter[int | None] = Counter()
    num_tasks = len(asyncio.all_tasks())

    async def one(request: RawRequest) -> None:
        request = dataclasses.replace(request, headers=((b"authorization", key), *request.headers))
        response = await asyncio.wait_for(send(app, request), timeout=30)
        check(request, response)
        recipes[request.recipe] += 1
        statuses[response.status] += 1

    requests = list(malformed(SEED, number))
    for start in range(0, number, AT_ONCE):
        await asyncio.gather(*map(one, requests[start : start + AT_ONCE]))
    await settled(replica)
    assert len(asyncio.all_tasks()) == num_tasks, "a task was left"
    assert {200, 400, 404, 405, 413, 414, 415, 431} <= set(statuses), statuses
    return recipes


@pytest.mark.slow
async def test_500_malformed_requests(door: Door, replica: ModelReplica) -> None:
    door.app = create_api(EngineBackend(replica))
    recipes = await fuzz(door, replica, 500)
    assert len(recipes) == len(set(RECIPES))


@pytest.mark.long
async def test_5000_malformed_requests(door: Door, replica: ModelReplica) -> None:
    door.app = create_api(EngineBackend(replica))
    assert sum((await fuzz(door, replica, 5000)).values()) == 5000


@pytest.mark.slow
async def test_clients_that_leave_their_streams_free_their_rows(
    door: Door, replica: ModelReplica
) -> None:
    """More of them than there are rows; the next client is served at once."""
    door.args = {}
    door.app = create_api(EngineBackend(replica))
    app = door.built()
    leaving = [r for r in malformed(1, 4000) if r.recipe == "leaves_in_the_answer"]
    streams = [r for r in leaving if b'"stream": true' in b"".join(r.pieces)][:40]
    assert len(streams) == 40
    responses = await asyncio.gather(*(send(app, request) for request in streams))
    assert any(b"[DONE]" not in response.body for response in responses), "nobody left early"
    await settled(replica)
    (answer,) = await asks(app, 1)
    assert (await asyncio.wait_for(answer, 5)).status == 200


@pytest.mark.slow
async def test_cancelled_requests_free_their_rows(door: Door, replica: ModelReplica) -> None:
    """Ray's proxy cancels the call of a client that left, in whatever it is waiting for."""
    door.args = {}
    door.app = create_api(EngineBackend(replica))
    app = door.built()
    tasks = await asks(app, 40)
    while not replica._engine.num_running:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert any(isinstance(end, asyncio.CancelledError) for end in ended), "nobody was cancelled"
    await settled(replica)
    (answer,) = await asks(app, 1)
    assert (await asyncio.wait_for(answer, 5)).status == 200


async def asks(app: ASGIApp, number: int) -> list["asyncio.Task[RawResponse]"]:
    body = json.dumps({"question": "a red rash", "max_tokens": 64}).encode()
    headers = ((b"content-type", b"application/json"),)
    request = RawRequest("POST", "/ask", headers, (body,))
    return [asyncio.create_task(send(app, request)) for _ in range(number)]
