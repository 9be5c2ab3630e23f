"""A stream that waits: its headers go out, comment lines keep it alive, and clients skip them."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.types import ASGIApp, Message

from deployments.api import comments, streaming
from deployments.api.app import create_api
from deployments.api.http_1_0 import WholeForHttp10
from deployments.engine.request import ErrorInfo, FinishReason, TokenEvent
from deployments.messages import GenerateRequest
from tests.deployments.api.access.malformed import RawRequest, send
from tests.deployments.conftest import SmallBackend
from tests.test_layout import ROOT

WAIT_S = 0.1
USER = {"role": "user", "content": "one two"}
STREAMS: list[tuple[str, dict[str, Any]]] = [
    ("/ask", {"question": "one two", "stream": True}),
    ("/ask", {"question": "one two", "stream": True, "consult": 1}),
    ("/v1/chat/completions", {"messages": [USER], "stream": True}),
    ("/v1/completions", {"prompt": ["one two", "one two"], "stream": True}),
]
COMMENT = b": waiting\n\n"


class Waiting(SmallBackend):
    """Nothing comes for `first_s`, and for `later_s` between two events; then perhaps an error."""

    def __init__(self, first_s: float, later_s: float = 0.0) -> None:
        super().__init__()
        self.first_s, self.later_s = first_s, later_s
        self.fails = False

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        await asyncio.sleep(self.first_s)
        if self.fails:
            error = ErrorInfo("replica_lost", "lost", retry_after_s=5)
            yield self._event(call, "", 0, FinishReason.ERROR, error)
            return
        async for event in super().generate(call):
            yield event
            await asyncio.sleep(self.later_s)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HEADERS_AFTER_S", WAIT_S)
    monkeypatch.setattr(comments, "COMMENT_EVERY_S", WAIT_S)


async def messages_of(
    app: ASGIApp, path: str, body: dict[str, Any], version: str = "1.1"
) -> list[tuple[float, Message]]:
    """What the application sends, each with the seconds since the request."""
    headers = ((b"content-type", b"application/json"),)
    clock = asyncio.get_running_loop().time
    started, seen = clock(), list[tuple[float, Message]]()

    async def timed(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Message) -> None:
            seen.append((clock() - started, message))
            await send(message)

        await app({**scope, "http_version": version}, receive, sending)

    await send(timed, RawRequest("POST", path, headers, (json.dumps(body).encode(),)))
    return seen


def pieces(seen: list[tuple[float, Message]]) -> list[bytes]:
    return [message["body"] for _, message in seen[1:]]


@pytest.mark.alone
@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_headers_and_comments_go_out_before_the_first_token(
    path: str, body: dict[str, Any]
) -> None:
    seen = await messages_of(create_api(Waiting(first_s=4.5 * WAIT_S)), path, body)
    (at, start), *_ = seen
    assert start["status"] == 200
    assert at < 3 * WAIT_S, "the headers waited for the first token"
    sent = pieces(seen)
    assert sent.count(COMMENT) >= 2
    at_once = await messages_of(create_api(SmallBackend()), path, body)
    assert COMMENT not in pieces(at_once)
    kept = [piece for piece in sent if piece != COMMENT]
    assert len(kept) == len(pieces(at_once)), "but for the comments it is the same stream"
    assert all(piece.endswith(b"\n\n") for piece in sent[:-1]), "a comment inside an event"


@pytest.mark.alone
@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_comments_fill_a_silence_between_tokens(path: str, body: dict[str, Any]) -> None:
    backend = Waiting(first_s=0.0, later_s=2.5 * WAIT_S)
    seen = await messages_of(create_api(backend), path, body)
    sent = pieces(seen)
    assert sent.count(COMMENT) >= 2
    assert sent[0] != COMMENT
    assert sent[-1] == b"", "nothing after the end"
    times = [at for at, _ in seen]
    assert max(b - a for a, b in zip(times, times[1:], strict=False)) < 2 * WAIT_S


@pytest.mark.parametrize(("path", "body"), STREAMS)
@pytest.mark.parametrize("is_late", [False, True])
async def test_a_failure_is_a_status_until_the_headers_are_sent(
    path: str, body: dict[str, Any], is_late: bool
) -> None:
    backend = Waiting(first_s=3 * WAIT_S if is_late else 0.0)
    backend.fails = True
    seen = await messages_of(create_api(backend), path, body)
    assert seen[0][1]["status"] == (200 if is_late else 503)
    content = b"".join(pieces(seen)).decode()
    assert content.count('"replica_lost"') >= 1
    if is_late:
        assert content.rstrip().split("\n")[-1].startswith('data: {"error"')
        assert "[DONE]" not in content
        assert [o.outcome for o in backend.outcomes][0] == "replica_lost"


@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_a_client_that_leaves_while_it_waits_ends_the_answer(
    path: str, body: dict[str, Any]
) -> None:
    backend = Waiting(first_s=60)
    request = RawRequest(
        "POST",
        path,
        ((b"content-type", b"application/json"),),
        (json.dumps(body).encode(),),
        leaves="in the answer",
    )
    before = asyncio.all_tasks()
    await asyncio.wait_for(send(create_api(backend), request), 5)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before, "something still waits"
    assert {o.outcome for o in backend.outcomes} == {"cancelled"}


async def test_openais_client_skips_comments() -> None:
    app = create_api(Waiting(first_s=3.5 * WAIT_S, later_s=1.5 * WAIT_S))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://clinic/v1") as http:
        client = openai.AsyncOpenAI(
            base_url="http://clinic/v1", api_key="unused", http_client=http, max_retries=0
        )
        stream = await client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "one two"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "ONE TWO"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.slow
async def test_the_page_skips_comments(tmp_path: Path) -> None:
    app = create_api(Waiting(first_s=3.5 * WAIT_S, later_s=1.5 * WAIT_S))
    content = b"".join(pieces(await messages_of(app, *STREAMS[0])))
    assert COMMENT in content
    (tmp_path / "stream").write_bytes(content)
    shutil.copy(ROOT / "deployments" / "web" / "sse.js", tmp_path / "sse.mjs")
    (tmp_path / "read.mjs").write_text(
        "import fs from 'fs'; import { serverEvents } from './sse.mjs';\n"
        "const names = [];\n"
        "for await (const { event } of serverEvents(new Response(fs.readFileSync('stream'))))\n"
        "  names.push(event);\n"
        "console.log(names.join(' '));\n"
    )
    read = ["node", "read.mjs"]
    done = subprocess.run(read, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["route", "token", "token", "answer", "done"]


@pytest.mark.parametrize(("path", "body"), [*STREAMS, ("/ask", {"question": "one two"})])
async def test_a_client_of_http_1_0_gets_its_body_whole(path: str, body: dict[str, Any]) -> None:
    app = create_api(SmallBackend())
    seen = await messages_of(WholeForHttp10(app), path, body, version="1.0")
    (_, start), (_, only) = seen
    headers = dict(start["headers"])
    assert headers[b"content-length"] == b"%d" % len(only["body"])
    assert headers[b"connection"] == b"close"
    assert b"transfer-encoding" not in headers
    assert not only.get("more_body", False)
    streamed = await messages_of(WholeForHttp10(app), path, body)
    assert only["body"].count(b"data:") == b"".join(pieces(streamed)).count(b"data:")
    assert b"connection" not in dict(streamed[0][1]["headers"])
