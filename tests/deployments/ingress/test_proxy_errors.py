"""What Serve's proxy says for itself has our shape; what comes from a router passes as it is."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.api.middleware import PAGE_PATHS
from deployments.ingress.proxy import middlewares
from deployments.ingress.proxy_errors import OwnErrors

EVENT = 'event: token\ndata: {"opinion": 0, "text": "event: done"}\n\n'
CHUNK = 'data: {"choices": [{"delta": {"content": "data: [DONE]"}}]}\n\n'
DELTA = 'event: response.output_text.delta\ndata: {"sequence_number": 6, "delta": "a"}\n\n'


async def reply_of(
    serve: ASGIApp, path: str = "/ask", method: str = "POST", content: Any = b"{}"
) -> httpx.Response:
    """Ask Serve's proxy, whose own part is `serve`, with our middlewares around it."""
    for middleware in middlewares():
        serve = middleware.cls(serve, *middleware.args, **middleware.kwargs)
    transport = httpx.ASGITransport(serve)
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
        headers = {"x-request-id": "visit.7"}
        return await client.request(method, path, content=content, headers=headers)


def cut_after(*bodies: str, content_type: str = "text/event-stream") -> ASGIApp:
    """A proxy whose router replica dies after it has sent so much."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", content_type.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for body in bodies:
            await send({"type": "http.response.body", "body": body.encode(), "more_body": True})

    return serve


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """A proxy whose router replica dies before it has sent anything."""


@pytest.mark.parametrize("path", ["/ask", "/v1/chat/completions", "/readyz", *PAGE_PATHS])
async def test_a_router_that_dies_before_its_reply_is_a_503_to_try_again(path: str) -> None:
    reply = await reply_of(nothing, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "router_lost")
    assert reply.headers["retry-after"] == "1"
    assert reply.headers.get_list("x-request-id") == ["visit.7"]
    assert reply.headers["x-content-type-options"] == "nosniff"


class DiesFirst:
    """A proxy whose first `num` routers die before they have sent anything."""

    def __init__(self, num: int) -> None:
        self.bodies: list[bytes] = []
        self._num = num

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["path"] = "/changed by the first one"
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        if len(self.bodies) > self._num:
            await JSONResponse({"fine": True})(scope, receive, send)


@pytest.mark.parametrize(
    ("method", "path", "num_asked"),
    [
        ("POST", "/ask", 2),
        ("POST", "/clinic/ask", 2),
        ("POST", "/route", 2),
        ("POST", "/v1/chat/completions", 2),
        ("POST", "/v1/completions", 2),
        ("POST", "/v1/responses", 2),
        ("GET", "/readyz", 2),
        ("GET", "/v1/adapters", 2),
        ("POST", "/v1/adapters", 1),
        ("PATCH", "/v1/adapters/derm", 1),
        ("DELETE", "/v1/adapters/derm", 1),
    ],
)
async def test_what_changes_nothing_is_asked_once_more(
    method: str, path: str, num_asked: int
) -> None:
    proxy = DiesFirst(1)
    reply = await reply_of(proxy, path, method, content=b'{"question": "a rash"}')
    assert proxy.bodies == [b'{"question": "a rash"}'] * num_asked
    assert reply.status_code == (200 if num_asked == 2 else 503)


async def test_it_is_asked_once_more_and_not_again() -> None:
    proxy = DiesFirst(2)
    reply = await reply_of(proxy)
    assert (len(proxy.bodies), reply.json()["error"]["code"]) == (2, "router_lost")


@pytest.mark.parametrize("num_bytes", [0, 1, 256 * 1024, 256 * 1024 + 1, 10**6])
async def test_a_body_of_any_size_is_whole_or_not_sent_again(num_bytes: int) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, num_bytes, 100_000):
            yield b"x" * min(100_000, num_bytes - start)

    proxy = DiesFirst(1)
    await reply_of(proxy, content=pieces())
    num_asked = 2 if num_bytes <= 256 * 1024 else 1
    assert [len(body) for body in proxy.bodies] == [num_bytes] * num_asked


@pytest.mark.parametrize(
    ("received", "num_asked"),
    [
        ([{"type": "http.request", "body": b"{}", "more_body": False}], 2),
        ([{"type": "http.request", "body": b"{}", "more_body": True}], 1),
        ([], 1),
        ([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}], 1),
    ],
)
async def test_half_a_body_and_one_whose_client_left_are_not_sent_again(
    received: list[Any], num_asked: int
) -> None:
    asked: list[int] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(len(asked))
        for _ in received:
            await receive()

    async def send(message: Any) -> None:
        pass

    given = list(received)
    scope = {"type": "http", "method": "POST", "path": "/ask", "headers": []}

    async def receive_in_turn() -> Any:
        return given.pop(0)

    await OwnErrors(serve)(scope, receive_in_turn, send)
    assert len(asked) == num_asked


@pytest.mark.parametrize(
    ("status", "given", "code"),
    [
        (503, 503, "no_router_replica"),
        (429, 503, "overloaded"),
        (408, 408, "deadline_exceeded"),
        (404, 404, "path_not_found"),
        (500, 503, "router_lost"),
        (418, 418, "http_error"),
    ],
)
async def test_a_refusal_of_serve_s_has_our_shape(status: int, given: int, code: str) -> None:
    reply = await reply_of(PlainTextResponse("Deployment(name='Router') is gone", status))
    assert (reply.status_code, reply.json()["error"]["code"]) == (given, code)
    assert "Deployment" not in reply.text
    assert ("retry-after" in reply.headers) is (given == 503)


@pytest.mark.parametrize(
    ("path", "sent", "name"),
    [
        ("/ask", (EVENT,), "error"),
        ("/ask", (), "error"),
        ("/ask", (EVENT, ": still there\n\n"), "error"),
        ("/v1/chat/completions", (CHUNK, CHUNK), None),
        ("/v1/completions", (CHUNK,), None),
        ("/v1/responses", (DELTA, DELTA), "error"),
        ("/v1/responses", (), "error"),
    ],
)
async def test_a_stream_that_is_cut_gets_its_last_event(
    path: str, sent: tuple[str, ...], name: str | None
) -> None:
    reply = await reply_of(cut_after(*sent), path)
    assert reply.text.startswith("".join(sent))
    lines = reply.text.removeprefix("".join(sent)).splitlines()
    assert lines[:-2] == ([f"event: {name}"] if name else [])
    data = json.loads(lines[-2].removeprefix("data: "))
    assert data["error"]["code"] == "router_lost"
    assert data["error"]["request_id"] == "visit.7"
    if path.endswith("/responses"):
        assert (data["type"], data["sequence_number"]) == ("error", 7 if sent else 0)


@pytest.mark.parametrize(
    "last",
    [
        'event: done\ndata: {"id": "r"}\n\n',
        'event: error\ndata: {"error": {}}\n\n',
        "data: [DONE]\n\n",
        CHUNK + "data: [DONE]\n\n",
        'data: {"error": {"code": "replica_lost"}}\n\n',
        "event: response.completed\ndata: {}\n\n",
        "event: response.incomplete\ndata: {}\n\n",
    ],
)
async def test_a_stream_that_had_its_last_event_gets_no_other(last: str) -> None:
    reply = await reply_of(cut_after(EVENT, last))
    assert reply.text == EVENT + last


async def _events() -> Any:
    yield EVENT


@pytest.mark.parametrize(
    "app",
    [
        JSONResponse({"error": {"code": "queue_full"}}, 503, {"retry-after": "7"}),
        PlainTextResponse("fine"),
        StreamingResponse(_events(), media_type="text/event-stream"),
    ],
)
async def test_what_a_router_says_passes_as_it_is(app: ASGIApp) -> None:
    reply = await reply_of(app)
    assert "router_lost" not in reply.text
    assert reply.text in ('{"error":{"code":"queue_full"}}', "fine", EVENT)


async def test_half_a_body_that_is_no_stream_is_left_to_the_server() -> None:
    """It closes the connection, since nobody could tell the rest from the page."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    app = OwnErrors(cut_after("<html>", content_type="text/html"))
    await app({"type": "http", "method": "GET", "path": "/", "headers": []}, send, send)  # type: ignore[arg-type]
    assert [message.get("body") for message in sent] == [None, b"<html>"]


async def test_serve_s_own_health_stays_as_it_is() -> None:
    reply = await reply_of(PlainTextResponse("unhealthy", 503), "/-/healthz")
    assert (reply.status_code, reply.text) == (503, "unhealthy")


class Late:
    """A proxy of Serve's that ends a stream at its own time limit."""

    def __init__(self, took_s: float, limit_s: float | None) -> None:
        self.request_timeout_s = limit_s
        self._took_s = took_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(self._took_s)
        await cut_after(EVENT)(scope, receive, send)


class Wrapped:
    """As other middlewares of Serve's are around it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest.mark.parametrize(
    ("took_s", "limit_s", "code"),
    [
        (0.06, 0.05, "deadline_exceeded"),
        (0.0, 30.0, "router_lost"),
        (0.0, None, "router_lost"),
    ],
)
@pytest.mark.parametrize("path", ["/ask", "/v1/chat/completions", "/v1/responses"])
async def test_a_stream_that_serve_ends_at_its_time_limit_says_so(
    took_s: float, limit_s: float | None, code: str, path: str
) -> None:
    reply = await reply_of(Wrapped(Wrapped(Late(took_s, limit_s))), path)
    last = reply.text.split("\n\n")[-2].rpartition("data: ")[2]
    found = json.loads(last)
    assert (found.get("error") or found)["code"] == code
