"""Sizes and times of a request: refused before anybody parses it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deployments.api.middleware import MAX_HEADER_BYTES, MAX_HEADERS, MAX_TARGET_BYTES
from deployments.live_settings import AccessLimits
from tests.deployments.api.access.conftest import Door
from tests.deployments.conftest import SmallBackend, error_of

ASK = {"question": "a red rash"}


@pytest.fixture
def open_door(door: Door) -> Door:
    door.args = {}
    return door


async def test_headers_within_the_limit_pass_and_above_it_are_a_431(open_door: Door) -> None:
    async with open_door.client() as client:
        few = {f"x-{i}": "1" for i in range(MAX_HEADERS - 20)}
        assert (await client.post("/ask", json=ASK, headers=few)).status_code == 200
        many = {f"x-{i}": "1" for i in range(MAX_HEADERS + 1)}
        long = {"x-long": "1" * MAX_HEADER_BYTES}
        for headers in (many, long):
            refused = await client.post("/ask", json=ASK, headers=headers)
            assert refused.status_code == 431
            assert error_of(refused)["limit"] == MAX_HEADER_BYTES
            assert refused.headers["connection"] == "close"


async def test_a_long_path_or_query_is_a_414(open_door: Door) -> None:
    async with open_door.client() as client:
        assert (await client.get("/healthz?" + "a" * 100)).status_code == 200
        for target in ("/healthz?" + "a" * MAX_TARGET_BYTES, "/" + "a" * MAX_TARGET_BYTES):
            refused = await client.get(target)
            assert refused.status_code == 414
            assert error_of(refused)["code"] == "uri_too_long"


async def test_a_body_that_does_not_end_is_a_408(open_door: Door, backend: SmallBackend) -> None:
    open_door.live = AccessLimits(body_timeout_s=0.2)

    async def dripping() -> AsyncIterator[bytes]:
        for byte in b'{"question": "':
            yield bytes([byte])
            await asyncio.sleep(0.05)

    headers = {"content-type": "application/json"}
    async with open_door.client() as client:
        started = asyncio.get_running_loop().time()
        refused = await client.post("/ask", content=dripping(), headers=headers)
        took_s = asyncio.get_running_loop().time() - started
    assert (refused.status_code, error_of(refused)["code"]) == (408, "body_timeout")
    assert took_s < 0.5  # the deadline is for the whole body, not for each piece of it
    assert backend.calls == []


async def test_an_answer_may_take_longer_than_a_body(
    open_door: Door, backend: SmallBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit ends with the body: the wait for a client that leaves has none."""
    open_door.live = AccessLimits(body_timeout_s=0.05)
    classify = backend.classify

    async def slow(conversations: Any) -> Any:
        await asyncio.sleep(0.2)
        return await classify(conversations)

    monkeypatch.setattr(backend, "classify", slow)
    body = {"messages": [{"role": "user", "content": "a red rash"}], "stream": True}
    async with open_door.client() as client:
        response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200
    assert response.text.rstrip().endswith("[DONE]")


async def test_a_websocket_is_closed(open_door: Door) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/ask", "headers": [], "query_string": b""}
    await open_door.built()(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_a_body_in_pieces_arrives_whole(open_door: Door) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in json.dumps(ASK).encode():
            yield bytes([byte])

    async with open_door.client() as client:
        response = await client.post(
            "/ask", content=pieces(), headers={"content-type": "application/json"}
        )
    assert response.json()["answer"] == "A RED RASH"
