"""What every request and response has: an id, once; and what an answer costs its caller."""

from typing import Any

import httpx
import pytest

from deployments.api.app import create_api
from deployments.api.middleware import ResponseHeaders
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


async def test_an_unexpected_failure_and_a_refused_id_have_ids_too(
    client: httpx.AsyncClient, backend: SmallBackend
) -> None:
    backend.raises = ValueError("broken")
    headers = {"x-request-id": "visit.7"}
    response = await client.post("/ask", json={"question": "a rash"}, headers=headers)
    assert (response.status_code, response.headers["x-request-id"]) == (500, "visit.7")
    response = await client.get("/healthz", headers={"x-request-id": "a b"})
    assert response.status_code == 400
    assert response.headers["x-request-id"] not in ("", "a b")


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
