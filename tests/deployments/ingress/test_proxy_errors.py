"""What Serve's proxy says for itself has our shape; what comes from a router passes as it is."""

import json
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


async def reply_of(serve: ASGIApp, path: str = "/ask") -> httpx.Response:
    """Ask Serve's proxy, whose own part is `serve`, with our middlewares around it."""
    for middleware in middlewares():
        serve = middleware.cls(serve, *middleware.args, **middleware.kwargs)
    transport = httpx.ASGITransport(serve)
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
        return await client.post(path, json={}, headers={"x-request-id": "visit.7"})


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
    await app({"type": "http", "path": "/", "headers": []}, send, send)  # type: ignore[arg-type]
    assert [message.get("body") for message in sent] == [None, b"<html>"]


async def test_serve_s_own_health_stays_as_it_is() -> None:
    reply = await reply_of(PlainTextResponse("unhealthy", 503), "/-/healthz")
    assert (reply.status_code, reply.text) == (503, "unhealthy")
