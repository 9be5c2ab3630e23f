"""What every request and response has: an id, once; and what an answer costs its caller."""

from typing import Any

import httpx
import pytest

from deployments.api.app import create_api
from deployments.api.middleware import ResponseHeaders
from deployments.api.protocol.base import is_id
from deployments.ingress.proxy import middlewares
from deployments.startup.cluster import ENVIRONMENT
from tests.deployments.api.ask.conftest import Caller
from tests.deployments.conftest import SmallBackend

CHAT = {"messages": [{"role": "user", "content": "one two three"}]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/v1/models/auto", 200),
        ("GET", "/v1/models/gpt-4", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/ask", 405),
        ("POST", "/ask", 415),
        ("POST", "/route", 415),
    ],
)
async def test_every_response_has_the_requests_id(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path, headers={"x-request-id": "visit.7"})
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") == ["visit.7"]
    made = [(await client.request(method, path)).headers["x-request-id"] for _ in range(2)]
    assert len({*made, ""}) == 3


async def test_an_unexpected_failure_has_its_id_too(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    backend.raises = ValueError("broken")
    headers = {"x-request-id": "visit.7"}
    response = await client.post("/ask", json={"question": "a rash"}, headers=headers)
    assert (response.status_code, response.headers["x-request-id"]) == (500, "visit.7")


FOREIGN_IDS = [
    b"{b2f7e0c8-0d5c-4c6d-9f3e-0c5f4a1d2e3f}",
    b"Root=1-67891233-abcdef012345678912345678",
    b"Root=1-67891233-abcdef012345678912345678;Sampled=1",
    b"a" * 200,
    b"",
    b" ",
    b"a b",
    b"caf\xc3\xa9",
    b"caf\xe9",
    b"visit/7",
    b"visit:7",
    b"a,b",
    b"zebrafish zebrafish",
]


@pytest.mark.parametrize("given", FOREIGN_IDS)
@pytest.mark.parametrize("path", ["/healthz", "/ask", "/v1/chat/completions"])
async def test_an_id_of_another_shape_is_replaced(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, given: bytes, path: str
) -> None:
    """Here and, under Serve, before its proxy has read it."""
    headers = [(b"x-request-id", given)]
    body = {"question": "a rash"} if path == "/ask" else CHAT
    if path == "/healthz":
        response = await client.get(path, headers=headers)
    else:
        response = await client.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    (made,) = response.headers.get_list("x-request-id")
    assert is_id(made)
    assert made.encode() != given
    if path == "/ask":
        assert response.json()["id"] == made
    records = [record.getMessage() for record in caplog.records if record.name != "httpx"]
    assert not given.strip() or not any(ascii(given)[2:-1] in text for text in records)


async def test_several_ids_are_none(client: httpx.AsyncClient) -> None:
    headers = [("x-request-id", "one"), ("x-request-id", "two")]
    response = await client.get("/healthz", headers=headers)
    (made,) = response.headers.get_list("x-request-id")
    assert made not in ("one", "two", "one, two")


@pytest.mark.parametrize("given", [*FOREIGN_IDS, b"visit.7", None])
async def test_serves_proxy_gets_one_id_of_our_shape(given: bytes | None) -> None:
    middleware = middlewares()[-1]
    seen: list[Any] = []

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    session = (b"x-session-id", b"caf\xe9")
    headers = [session, (b"cookie", b"\xe9")]
    if given is not None:
        headers.append((b"x-request-id", given))
    app = middleware.cls(serve, *middleware.args, **middleware.kwargs)
    await app({"type": "http", "headers": headers}, None, None)  # type: ignore[arg-type]
    passed = seen[0]["headers"]
    (made,) = [value.decode() for name, value in passed if name == b"x-request-id"]
    assert is_id(made)
    assert (made == "visit.7") == (given == b"visit.7")
    others = dict(passed)
    assert others[b"x-session-id"] == rb"b'caf\xe9'", "we refuse it, Serve could not decode it"
    assert others[b"cookie"] == b"\xe9"


def test_the_launcher_gives_serve_the_proxys_part() -> None:
    path = ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    assert path == f"{middlewares.__module__}:{middlewares.__name__}"


async def test_behind_rays_http_server_our_own_header_is_taken_away(backend: SmallBackend) -> None:
    """Ray appends one to every response, in the spelling X-Request-ID."""
    transport = httpx.ASGITransport(ResponseHeaders(create_api(backend), proxy_adds_id=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
        headers = {"x-request-id": "visit.7"}
        response = await client.post("/ask", json={"question": "a rash"}, headers=headers)
    assert response.json()["id"] == "visit.7"
    assert "x-request-id" not in response.headers


@pytest.mark.parametrize(
    ("path", "body", "charges"),
    [
        ("/v1/chat/completions", CHAT, [10]),
        ("/v1/chat/completions", {**CHAT, "stream": True}, [10]),
        ("/v1/completions", {"prompt": "one two"}, [9]),
        ("/ask", {"question": "one two"}, [9]),
        ("/ask", {"question": "one two", "max_tokens": 0}, []),
        ("/route", {"questions": ["one two"]}, []),
    ],
)
async def test_an_answer_is_charged_once_when_somebody_counts(
    backend: SmallBackend, path: str, body: dict[str, Any], charges: list[int]
) -> None:
    app, caller = create_api(backend), Caller()

    async def with_caller(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": {"caller": caller}}, receive, send)

    for counted in (with_caller, app):  # without keys nobody counts
        transport = httpx.ASGITransport(counted)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://clinic") as client:
            await client.post(path, json=body)
        assert caller.charges == charges
