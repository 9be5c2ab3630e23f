"""Which requests pass the keys and limits, with which status others are refused, and headers."""

import asyncio
from collections.abc import Callable

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.api.access.auth import need_of
from deployments.api.middleware import local_path
from deployments.live_settings import AccessLimits
from tests.deployments.api.access.conftest import Door
from tests.deployments.conftest import error_of

ASK = {"question": "a red rash"}


async def charging(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands for the API: an answer of 40 tokens, charged when it has ended."""
    await PlainTextResponse("fine")(scope, receive, send)
    scope["state"]["caller"].charge(40)


class Slow:
    """An answer that is in progress until `release`."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.num_started = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_started += 1
        await self.release.wait()
        await PlainTextResponse("fine")(scope, receive, send)


async def test_a_valid_key_is_let_in_by_either_header(door: Door) -> None:
    headers = door.key()
    bare = headers["authorization"].removeprefix("Bearer ")
    async with door.client() as client:
        for shown in (headers, {"Authorization": f"bearer {bare}"}, {"x-api-key": bare}):
            response = await client.post("/ask", json=ASK, headers=shown)
            assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Bearer pc-000000000000-" + "A" * 43}, "invalid_api_key"),
        ({"authorization": "Bearer "}, "invalid_api_key"),
        ({"authorization": "Basic dXNlcjpwYXNz"}, "invalid_api_key"),
        ({"x-api-key": "unused"}, "invalid_api_key"),
    ],
)
async def test_no_key_or_a_bad_one_is_a_401(door: Door, headers: dict[str, str], code: str) -> None:
    door.key()
    async with door.client() as client:
        for path in ("/ask", "/v1/chat/completions", "/v1/models", "/no/such/path", "/v1/adapters"):
            response = await client.post(
                path, json=ASK, headers={**headers, "x-request-id": "abc-1"}
            )
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Bearer ")
            assert response.headers["x-request-id"] == "abc-1"
            assert error_of(response)["code"] == code


async def test_two_authorization_headers_are_refused(door: Door) -> None:
    good = door.key()["authorization"]
    headers = [("authorization", "Bearer other"), ("authorization", good)]
    async with door.client() as client:
        assert (await client.post("/ask", json=ASK, headers=headers)).status_code == 401


async def test_the_request_is_refused_before_its_body_is_read(door: Door) -> None:
    async def receive() -> dict[str, object]:
        raise AssertionError("the body was read")

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/ask", "headers": [], "query_string": b""}
    await door.built()(scope, receive, send)  # type: ignore[arg-type]
    assert sent[0]["status"] == 401


async def test_what_is_open_needs_no_key(door: Door) -> None:
    async with door.client() as client:
        for path in ("/healthz", "/readyz", "/", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/static/no-such-file")).status_code == 404  # and not a 401


def test_which_path_needs_what() -> None:
    needs = {
        "nothing": ["", "/", "/healthz", "/readyz", "/openapi.json", "/static/app.js"],
        "admin": ["/v1/adapters", "/v1/adapters/", "/v1/adapters/x/rollback", "/v1/operator"]
        + ["/v1/references/passages", "/v1/references/sources"],
        "key": [
            "/ask",
            "/v1/models",
            "/v1/references/search",
            "/staticx",
            "/v1/adaptersx",
            "/healthz/",
            "//",
            "/new",
        ],
    }
    for need, paths in needs.items():
        assert [need_of(path) for path in paths] == [need] * len(paths)


def test_the_path_is_that_of_starlette_s_routing() -> None:
    from starlette._utils import get_route_path

    for root in ("", "/clinic", "/v1"):
        for path in ("/", "/clinic", "/clinic/v1/adapters", "/clinicx", "/v1", "/v1/adapters"):
            scope = {"type": "http", "path": path, "root_path": root}
            assert local_path(scope) == get_route_path(scope)


async def test_an_admin_path_needs_an_admin_key(door: Door) -> None:
    user, admin = door.key("user"), door.key("admin")
    async with door.client() as client:
        refused = await client.get("/v1/operator", headers=user)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "admin_key_required")
        assert (await client.get("/v1/operator", headers=admin)).status_code == 200
        assert (await client.post("/ask", json=ASK, headers=admin)).status_code == 200


async def test_with_auth_open_admin_paths_stay_closed(door: Door) -> None:
    door.args = {}
    admin = door.key("admin")
    async with door.client() as client:
        asked = await client.post("/ask", json=ASK, headers={"authorization": "Bearer unused"})
        assert asked.status_code == 200
        assert not [name for name in asked.headers if name.startswith("x-ratelimit")]
        refused = await client.get("/v1/adapters")
        assert refused.status_code == 403
        assert "deployments.keys create --kind admin" in error_of(refused)["message"]
        assert (await client.get("/v1/adapters", headers=admin)).status_code == 404
    door.args = {"auth": {"open_admin": True}}
    async with door.client() as client:
        assert (await client.get("/v1/adapters")).status_code == 404


async def test_a_revoked_key_is_refused_and_a_running_answer_ends_well(
    door_of: Callable[[ASGIApp], Door],
) -> None:
    slow = Slow()
    door = door_of(slow)
    headers = door.key()
    async with door.client() as client:
        running = asyncio.create_task(client.get("/ask", headers=headers))
        while not slow.num_started:
            await asyncio.sleep(0)
        door.store.change(lambda records: [])
        door.watch.refresh()
        assert (await client.get("/ask", headers=headers)).status_code == 401
        slow.release.set()
        assert (await running).status_code == 200


async def test_requests_a_minute(door: Door) -> None:
    headers = door.key(requests_per_minute=2)
    other = door.key()
    async with door.client() as client:
        first = await client.post("/ask", json=ASK, headers=headers)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] == "30.00s"
        await client.post("/ask", json=ASK, headers=headers)
        refused = await client.post("/ask", json=ASK, headers=headers)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "30"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert error_of(refused)["limited_by"] == "requests_per_minute"
        assert (await client.post("/ask", json=ASK, headers=other)).status_code == 200
        door.clock.now += 30
        assert (await client.post("/ask", json=ASK, headers=headers)).status_code == 200


async def test_an_error_counts_and_carries_the_headers_too(door: Door) -> None:
    headers = door.key(requests_per_minute=5)
    async with door.client() as client:
        refused = await client.post("/ask", json={"quest": "x"}, headers=headers)
        assert refused.status_code == 400
        assert refused.headers["x-ratelimit-remaining-requests"] == "4"


async def test_tokens_a_minute(door_of: Callable[[ASGIApp], Door]) -> None:
    door = door_of(charging)
    door.live = AccessLimits(tokens_per_minute=60)  # the default of keys without their own
    headers = door.key()
    rich = door.key(tokens_per_minute=1000)
    async with door.client() as client:
        assert (await client.get("/ask", headers=headers)).status_code == 200
        second = await client.get("/ask", headers=headers)
        assert second.headers["x-ratelimit-remaining-tokens"] == "20"
        refused = await client.get("/ask", headers=headers)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "21")
        assert error_of(refused)["limited_by"] == "tokens_per_minute"
        assert (await client.get("/ask", headers=rich)).status_code == 200


async def test_limits_change_live(door: Door) -> None:
    headers = door.key()
    async with door.client() as client:
        free = await client.post("/ask", json=ASK, headers=headers)
        assert "x-ratelimit-limit-requests" not in free.headers
        door.live = AccessLimits(requests_per_minute=1)
        assert (await client.post("/ask", json=ASK, headers=headers)).status_code == 200
        assert (await client.post("/ask", json=ASK, headers=headers)).status_code == 429


async def test_requests_at_the_same_time(door_of: Callable[[ASGIApp], Door]) -> None:
    slow = Slow()
    door = door_of(slow)
    door.live = AccessLimits(max_concurrent=3, max_concurrent_per_key=2)
    first, second = door.key(), door.key()
    async with door.client() as client:

        def start(headers: dict[str, str]) -> "asyncio.Task[httpx.Response]":
            return asyncio.create_task(client.get("/ask", headers=headers))

        running = [start(first), start(first), start(second)]
        while slow.num_started < 3:
            await asyncio.sleep(0)
        mine = await client.get("/ask", headers=second)  # the replica is full, the key is not
        assert (mine.status_code, error_of(mine)["code"]) == (503, "overloaded")
        assert mine.headers["retry-after"] == "1"
        door.live = AccessLimits(max_concurrent=10, max_concurrent_per_key=2)
        full = await client.get("/ask", headers=first)
        assert (full.status_code, error_of(full)["limited_by"]) == (429, "max_concurrent")
        assert full.headers["retry-after"] == "1"
        running[0].cancel()  # a client that leaves gives its place back
        await asyncio.gather(running[0], return_exceptions=True)
        again = start(first)
        slow.release.set()
        done = await asyncio.gather(*running[1:], again)
        assert [response.status_code for response in done] == [200, 200, 200]
        assert (await client.get("/ask", headers=first)).status_code == 200
