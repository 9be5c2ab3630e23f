"""The benchmarks' HTTP client against a small server: what it times, and what it refuses to."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from scripts.benchmarks.over_http.http_client import (
    LoadError,
    PreparedRequest,
    call,
    connect,
    read_stream,
    run_count,
    run_for,
    succeeds,
)
from scripts.benchmarks.over_http.serve_process import _within
from scripts.benchmarks.over_http.streams import streaming

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfin\r\n1\r\ne\r\n0\r\n\r\n"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\nno"


class Server:
    """Answers each request with `answer`, `delay_s` later."""

    def __init__(self) -> None:
        self.answer = WHOLE
        self.delay_s = 0.0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                writer.close()
                return
            self.heads.append(head)
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.bodies.append(await reader.readexactly(length))
            await asyncio.sleep(self.delay_s)
            writer.write(self.answer)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    listening = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = listening.sockets[0].getsockname()[1]
    yield found
    listening.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with connect() as opened:
        yield opened


def prepared(server: Server) -> PreparedRequest:
    url = f"http://127.0.0.1:{server.port}/ask"
    return PreparedRequest.post("side", url, {"question": "é"}, {"authorization": "Bearer x"})


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED])
async def test_requests_one_after_the_other(
    server: Server, session: aiohttp.ClientSession, answer: bytes
) -> None:
    server.answer, server.delay_s = answer, 0.02
    timed = await run_count(session, prepared(server), 5)
    assert len(timed.latencies_s) == len(server.bodies) == 5
    assert all(latency >= 0.02 for latency in timed.latencies_s)
    assert timed.wall_s >= 0.1
    assert server.heads[0].startswith(b"POST /ask HTTP/1.1\r\n")
    assert b"authorization: Bearer x\r\n" in server.heads[0]
    assert server.bodies[0] == b'{"question": "\\u00e9"}'


async def test_full_load_counts_all_connections(
    server: Server, session: aiohttp.ClientSession
) -> None:
    server.delay_s = 0.02
    timed = await run_for(session, prepared(server), 8, 0.3)
    alone = await run_for(session, prepared(server), 1, 0.3)
    assert timed.requests_per_s > 4 * alone.requests_per_s


async def test_a_refusal_is_no_measurement(server: Server, session: aiohttp.ClientSession) -> None:
    server.answer = REFUSED
    with pytest.raises(LoadError, match="side: status 429: no"):
        await run_count(session, prepared(server), 3)
    with pytest.raises(LoadError, match="side: status 429"):
        await read_stream(session, prepared(server))
    assert not await succeeds(session, prepared(server))


async def test_nobody_there(session: aiohttp.ClientSession) -> None:
    request = PreparedRequest.post("side", "http://127.0.0.1:9/ask", {})
    assert not await succeeds(session, request)
    with pytest.raises(OSError, match="127.0.0.1"):
        await call(session, "GET", "http://127.0.0.1:9/readyz")


def stream(*events: Any) -> bytes:
    """A whole answer of server-sent events; strings go out as they are."""
    lines = [e if isinstance(e, str) else f"data: {json.dumps(e)}\n\n" for e in events]
    body = "".join(lines).encode()
    half = len(body) // 2  # a chunk ends anywhere
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:], b"")]
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


def piece(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


USAGE = {"choices": [], "usage": {"completion_tokens": 7}}
DONE = "data: [DONE]\n\n"


async def test_a_stream_tells_its_pieces_and_its_tokens(
    server: Server, session: aiohttp.ClientSession
) -> None:
    role = {"choices": [{"delta": {"role": "assistant"}}]}
    server.answer = stream(": waiting\n\n", role, piece("Rest"), piece(" well."), USAGE, DONE)
    server.delay_s = 0.02
    answer = await read_stream(session, prepared(server))
    assert [length for _, length in answer.pieces] == [4, 6]
    assert answer.num_tokens == 7
    assert 0.02 <= answer.first_token_s <= answer.ended_at - answer.sent_at


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([piece("a"), USAGE], r"without \[DONE\]"),
        ([piece("a"), DONE], "without usage"),
        ([piece("a"), {"error": {"code": "queue_full"}}], "the stream broke: queue_full"),
    ],
)
async def test_a_broken_stream_is_no_measurement(
    server: Server, session: aiohttp.ClientSession, events: list[Any], told: str
) -> None:
    server.answer = stream(*events)
    with pytest.raises(LoadError, match=told):
        await read_stream(session, prepared(server))


async def test_a_stream_without_text_has_no_first_token(
    server: Server, session: aiohttp.ClientSession
) -> None:
    server.answer = stream(USAGE, DONE)
    answer = await read_stream(session, prepared(server))
    with pytest.raises(LoadError, match="held no text"):
        _ = answer.first_token_s


async def test_streams_run_until_the_block_ends_and_count_failures(server: Server) -> None:
    server.answer, server.delay_s = stream(piece("ab"), USAGE, DONE), 0.01
    url = f"http://127.0.0.1:{server.port}"
    async with streaming(url, {}, ["a1"], num=2, max_tokens=7) as streamed:
        await asyncio.sleep(0.1)
        server.answer = REFUSED
        await asyncio.sleep(0.1)
    assert len(streamed.answers) >= 2
    assert len(streamed.tokens) == 7 * len(streamed.answers)
    assert set(streamed.failures) == {"a1: a1: status 429: no"}


async def test_streams_ask_for_whole_answers(server: Server) -> None:
    server.answer, server.delay_s = stream(piece("ab"), USAGE, DONE), 0.01
    async with streaming(f"http://127.0.0.1:{server.port}", {}, ["a1"], num=1, max_tokens=7):
        await asyncio.sleep(0.1)
    assert {json.loads(body)["min_tokens"] for body in server.bodies} == {7}


async def test_streams_are_given_up_when_the_block_raises(server: Server) -> None:
    server.delay_s = 60
    began = time.perf_counter()

    async def raising() -> None:
        async with streaming(f"http://127.0.0.1:{server.port}", {}, ["a1"], num=2, max_tokens=7):
            await asyncio.sleep(0.05)
            raise LoadError("not in time")

    with pytest.raises(LoadError, match="not in time"):
        await raising()
    assert time.perf_counter() - began < 5


async def test_a_service_that_does_not_answer_is_not_ready() -> None:
    began = time.perf_counter()
    assert not await _within(asyncio.sleep(60, True), 0.0)
    assert time.perf_counter() - began < 5
    assert await _within(asyncio.sleep(0, True), 5.0)
