"""A small HTTP/1.1 client for load: keep-alive connections of asyncio, ready-made request bytes.

The client runs on the same cores as what it measures, so it must cost little.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


class LoadError(RuntimeError):
    """The server answered something that is no measurement."""


@dataclass(frozen=True, slots=True)
class Target:
    """One request, as bytes. `name` goes into the report."""

    name: str
    host: str
    port: int
    request: bytes

    @classmethod
    def post(
        cls, name: str, url: str, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> "Target":
        parts = urlsplit(url)
        content = json.dumps(body).encode()
        lines = [f"POST {parts.path} HTTP/1.1", f"host: {parts.netloc}"]
        lines += ["content-type: application/json", f"content-length: {len(content)}"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        return cls(name, parts.hostname or "", parts.port or 80, head + content)


@dataclass
class Timed:
    """Seconds of each whole request, and of the whole run."""

    latencies_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0

    @property
    def requests_per_s(self) -> float:
        return len(self.latencies_s) / self.wall_s


async def run_count(target: Target, number: int) -> Timed:
    """`number` requests, one after the other."""
    return await _run(target, 1, number, None)


async def run_for(target: Target, concurrency: int, seconds: float) -> Timed:
    """As many requests as there are in `seconds`, `concurrency` at a time."""
    return await _run(target, concurrency, None, seconds)


async def _run(
    target: Target, concurrency: int, number: int | None, seconds: float | None
) -> Timed:
    timed = Timed()
    started = time.perf_counter()
    end = None if seconds is None else started + seconds

    async def worker() -> None:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        try:
            count = 0
            while count != number and (end is None or time.perf_counter() < end):
                began = time.perf_counter()
                writer.write(target.request)
                await _read_answer(reader, target.name)
                timed.latencies_s.append(time.perf_counter() - began)
                count += 1
        finally:
            writer.close()

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    timed.wall_s = time.perf_counter() - started
    return timed


async def stream_lines(target: Target) -> AsyncIterator[bytes]:
    """The lines of one answer that comes in chunks, as they come, without their ends.

    Raises:
        LoadError: another status than 200.
        OSError, asyncio.IncompleteReadError: it broke off.
    """
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(target.request)
        head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b" ", 2)[1].decode()
        if status != "200":
            raise LoadError(f"{target.name}: status {status}")
        pending = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pending += await reader.readexactly(size)
            await reader.readexactly(2)
            *lines, pending = pending.split(b"\n")
            for line in lines:
                yield line
    finally:
        writer.close()


async def _read_answer(reader: asyncio.StreamReader, name: str) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = head.split(b" ", 2)[1]
    if b"transfer-encoding: chunked" in head:
        body = await _read_chunks(reader)
    else:
        _, _, rest = head.partition(b"content-length: ")
        body = await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
    if status != b"200":
        raise LoadError(f"{name}: status {status.decode()}: {body[:300].decode(errors='replace')}")
    return body


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body
