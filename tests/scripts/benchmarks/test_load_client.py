"""The load client against a small server: what it times, and what it refuses to time."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from scripts.benchmarks.load_client import LoadError, Target, run_count, run_for

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
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
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


def target(server: Server) -> Target:
    url = f"http://127.0.0.1:{server.port}/ask"
    return Target.post("side", url, {"question": "é"}, {"authorization": "Bearer x"})


@pytest.mark.parametrize("answer", [WHOLE, CHUNKED])
async def test_requests_one_after_the_other(server: Server, answer: bytes) -> None:
    server.answer, server.delay_s = answer, 0.02
    timed = await run_count(target(server), 5)
    assert len(timed.latencies_s) == len(server.bodies) == 5
    assert all(latency >= 0.02 for latency in timed.latencies_s)
    assert timed.wall_s >= 0.1
    assert server.heads[0].startswith(b"POST /ask HTTP/1.1\r\n")
    assert b"authorization: Bearer x\r\n" in server.heads[0]
    assert server.bodies[0] == b'{"question": "\\u00e9"}'


async def test_full_load_counts_all_connections(server: Server) -> None:
    server.delay_s = 0.02
    timed = await run_for(target(server), 8, 0.3)
    alone = await run_for(target(server), 1, 0.3)
    assert timed.requests_per_s > 4 * alone.requests_per_s


async def test_a_refusal_is_no_measurement(server: Server) -> None:
    server.answer = REFUSED
    with pytest.raises(LoadError, match="side: status 429: no"):
        await run_count(target(server), 3)
