"""The HTTP client of the benchmarks: timed requests, and streamed chat answers.

Every clock starts before the request is sent. Requests are prepared as bytes beforehand, because
the client often runs on the same cores as the server that it measures.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

_TIMEOUT_S = 300.0


class LoadError(RuntimeError):
    """The server's answer cannot be measured: another status, or a broken stream."""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """One POST, ready to be sent many times. `name` goes into messages and reports."""

    name: str
    url: str
    body: bytes
    headers: Mapping[str, str]

    @classmethod
    def post(
        cls, name: str, url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> "PreparedRequest":
        content_type = {"content-type": "application/json"}
        return cls(name, url, json.dumps(body).encode(), {**content_type, **(headers or {})})


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of each whole request, and of the whole run."""

    latencies_s: list[float]
    wall_s: float

    @property
    def requests_per_s(self) -> float:
        return len(self.latencies_s) / self.wall_s


@dataclass(frozen=True, slots=True)
class StreamedAnswer:
    """One streamed answer; times are of `time.perf_counter`."""

    sent_at: float
    ended_at: float
    pieces: list[tuple[float, int]]  # (time of arrival, characters) of each piece of text
    num_tokens: int  # from `usage`

    @property
    def first_token_s(self) -> float:
        if not self.pieces:
            raise LoadError("the stream held no text")
        return self.pieces[0][0] - self.sent_at


def connect(**connector: Any) -> aiohttp.ClientSession:
    """Open a client without a limit on connections; `connector` goes to aiohttp's TCPConnector."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, **connector),
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
    )


async def call(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    body: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """Return status and JSON content, whatever the status.

    Raises:
        OSError: no HTTP answer. ValueError: an answer that is not JSON.
    """
    try:
        async with session.request(method, url, json=body or None, headers=headers) as response:
            return response.status, json.loads(await response.read())
    except aiohttp.ClientError as error:
        raise OSError(str(error) or type(error).__name__) from error


async def is_served(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether the router has noticed its models, which it looks for once a second."""
    try:
        return (await call(session, "GET", f"{url}/readyz"))[0] == 200
    except (OSError, ValueError):
        return False


async def succeeds(session: aiohttp.ClientSession, request: PreparedRequest) -> bool:
    """Return whether the request gets a 200 now."""
    try:
        await _send(session, request)
    except (LoadError, OSError, TimeoutError, aiohttp.ClientError):
        return False
    return True


async def run_count(session: aiohttp.ClientSession, request: PreparedRequest, number: int) -> Timed:
    """Send the request `number` times, one after the other."""
    return await _run(session, request, 1, lambda done: done < number)


async def run_for(
    session: aiohttp.ClientSession, request: PreparedRequest, concurrency: int, seconds: float
) -> Timed:
    """Send the request again and again for `seconds`, `concurrency` at a time."""
    end = time.perf_counter() + seconds
    return await _run(session, request, concurrency, lambda done: time.perf_counter() < end)


async def _run(
    session: aiohttp.ClientSession,
    request: PreparedRequest,
    concurrency: int,
    is_due: Callable[[int], bool],
) -> Timed:
    latencies_s: list[float] = []
    started = time.perf_counter()

    async def worker() -> None:
        count = 0
        while is_due(count):
            began = time.perf_counter()
            await _send(session, request)
            latencies_s.append(time.perf_counter() - began)
            count += 1

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return Timed(latencies_s, time.perf_counter() - started)


async def _send(session: aiohttp.ClientSession, request: PreparedRequest) -> None:
    async with session.post(request.url, data=request.body, headers=request.headers) as response:
        body = await response.read()
        if response.status != 200:
            text = body[:300].decode(errors="replace")
            raise LoadError(f"{request.name}: status {response.status}: {text}")


def chat_body(
    question: str, max_tokens: int, *, model: str | None = None, stream: bool = True
) -> dict[str, Any]:
    """Return the body of a chat completion; model None: the router chooses."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    if model is not None:
        body["model"] = model
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


async def read_stream(session: aiohttp.ClientSession, request: PreparedRequest) -> StreamedAnswer:
    """Send a streamed chat completion and read it to its end.

    Raises:
        LoadError: another status, an error event, or an end without `[DONE]` and `usage`.
        OSError, aiohttp.ClientError, ValueError: it broke off, or a line is not JSON.
    """
    pieces: list[tuple[float, int]] = []
    num_tokens = None
    sent_at = time.perf_counter()
    async for chunk in _chunks(session, request):
        text = chunk["choices"] and chunk["choices"][0]["delta"].get("content")
        if text:
            pieces.append((time.perf_counter(), len(text)))
        if chunk.get("usage"):
            num_tokens = int(chunk["usage"]["completion_tokens"])
    if num_tokens is None:
        raise LoadError(f"{request.name}: the stream ended without usage")
    return StreamedAnswer(sent_at, time.perf_counter(), pieces, num_tokens)


async def _chunks(
    session: aiohttp.ClientSession, request: PreparedRequest
) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of each server-sent event up to `[DONE]`."""
    async with session.post(request.url, data=request.body, headers=request.headers) as response:
        if response.status != 200:
            text = (await response.read())[:300].decode(errors="replace")
            raise LoadError(f"{request.name}: status {response.status}: {text}")
        async for line in response.content:
            if line.strip() == b"data: [DONE]":
                return
            if line.startswith(b"data: "):
                chunk = json.loads(line[len(b"data: ") :])
                if "error" in chunk:
                    raise LoadError(f"the stream broke: {chunk['error']['code']}")
                yield chunk
    raise LoadError(f"{request.name}: the stream ended without [DONE]")
