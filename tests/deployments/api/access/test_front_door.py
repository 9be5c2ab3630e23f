"""Headers for browsers, other origins, and what the log must never hold."""

import logging

import pytest

from tests.deployments.api.access.conftest import Door
from tests.deployments.conftest import SECRET, SmallBackend

ORIGIN = "https://ward.example"
CHAT = {"messages": [{"role": "user", "content": f"my {SECRET} itches"}]}


async def test_every_answer_tells_the_browser_to_be_careful(door: Door) -> None:
    door.args = {"auth": {"mode": "keys"}}
    key = door.key()
    async with door.client() as client:
        answers = [
            await client.post("/ask", json={"question": "rash"}, headers=key),
            await client.post("/ask", json={"question": "rash"}),  # 401
            await client.post("/ask", content="{", headers=key),  # 415
            await client.get("/nowhere", headers=key),
        ]
        page = await client.get("/")
    for response in answers:
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-cache", "the page is checked by its ETag"


async def test_other_origins_are_off(door: Door) -> None:
    headers = {"origin": ORIGIN, "access-control-request-method": "POST"}
    async with door.client() as client:
        assert (await client.options("/ask", headers=headers)).status_code == 401
        response = await client.post("/ask", json={"question": "x"}, headers={"origin": ORIGIN})
        assert "access-control-allow-origin" not in response.headers


async def test_an_origin_that_was_set_may_call_and_others_may_not(door: Door) -> None:
    door.args = {"auth": {"mode": "keys"}, "cors_origins": [ORIGIN]}
    key = door.key()
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with door.client() as client:
        preflight = await client.options("/ask", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        refused = await client.post("/ask", json={"question": "x"}, headers={"origin": ORIGIN})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == ORIGIN  # so that it can be read
        answer = await client.post(
            "/ask", json={"question": "x"}, headers={**key, "origin": ORIGIN}
        )
        assert answer.status_code == 200
        assert "x-ratelimit-remaining-tokens" in answer.headers["access-control-expose-headers"]
        other = await client.options("/ask", headers={**asked, "origin": "https://evil.example"})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    "name",
    ["x-stainless-lang", "x-stainless-retry-count", "x-session-id", "x-api-key", "openai-beta"],
)
async def test_a_page_of_such_an_origin_may_send_the_headers_of_its_client(
    door: Door, name: str
) -> None:
    door.args = {"auth": {"mode": "keys"}, "cors_origins": [ORIGIN]}
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": f"authorization,{name}",
    }
    async with door.client() as client:
        preflight = await client.options("/ask", headers=asked)
    assert preflight.status_code == 200, preflight.text
    assert name in preflight.headers["access-control-allow-headers"]


async def test_no_word_of_a_question_and_no_key_is_logged(
    door: Door, backend: SmallBackend, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything that can go wrong, with the log at DEBUG for every logger there is."""
    caplog.set_level(logging.DEBUG)
    key = door.key()
    bad_key = {"authorization": f"Bearer {SECRET}"}
    async with door.client() as client:

        async def post(path: str, body: object, headers: dict[str, str] = key) -> int:
            return (await client.post(path, json=body, headers=headers)).status_code

        assert await post("/ask", {"question": f"my {SECRET}"}) == 200
        assert await post("/v1/chat/completions", CHAT) == 200
        assert await post("/v1/chat/completions", {**CHAT, "stream": True}) == 200
        assert await post("/ask", {"question": f"my {SECRET}", "max_tokens": "x"}) == 400
        assert await post("/ask", {"question": f"{SECRET}\x00"}) == 400
        assert await post("/ask", [SECRET]) == 400
        assert await post("/route", {"questions": [SECRET] * 300}) == 400
        assert await post("/ask", {"question": SECRET}, bad_key) == 401
        backend.raises = RuntimeError(f"cannot read {SECRET}")
        assert await post("/ask", {"question": SECRET}) == 500
        backend.raises = None
        backend.break_after = 1
        assert await post("/v1/chat/completions", {**CHAT, "stream": True}) == 200
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert any("RuntimeError" in record.getMessage() for record in ours)  # the log is not empty
    text = "".join(f"{record.getMessage()} {record.exc_text} {record.args}" for record in ours)
    assert SECRET not in text
    assert key["authorization"].split("-")[-1] not in text


async def test_what_was_read_for_a_key_is_for_that_key_alone(
    door: Door, backend: SmallBackend, our_records: list[logging.LogRecord]
) -> None:
    one, other = door.key(), door.key("admin")
    body = {"model": "base", "messages": [{"role": "user", "content": "hello there"}]}
    async with door.client() as client:
        for key in (one, one, other):
            for path, sent in (("/v1/chat/completions", body), ("/ask", {"question": "hello"})):
                assert (await client.post(path, json=sent, headers=key)).status_code == 200
        response = {"model": "base", "input": "hello"}
        assert (await client.post("/v1/responses", json=response, headers=one)).status_code == 200
    first, _, _, _, another, *_ = tenants = [call.tenant for call in backend.calls]
    assert first is not None
    assert tenants == [*[first] * 4, *[another] * 2, first]
    assert another not in (None, first)
    ids = [record.id for record in door.store.read()]
    assert not any(id_ in first for id_ in ids)
    assert not any(first in record.getMessage() for record in our_records)


async def test_without_keys_all_are_one_tenant(door: Door, backend: SmallBackend) -> None:
    door.args = {}
    async with door.client() as client:
        await client.post("/ask", json={"question": "hello"})
    assert [call.tenant for call in backend.calls] == [None]
