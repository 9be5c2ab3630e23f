"""Streams of answers that run all the time, and when each of their pieces came."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.benchmarks.load_client import LoadError, Target, stream_lines
from scripts.benchmarks.token_times import token_times

QUESTION = "My heart sometimes races for a minute when I climb the stairs, is that dangerous?"
_PAUSE_AFTER_FAILURE_S = 0.2


@dataclass
class Streamed:
    """Of all streams. Seconds are those of time.perf_counter.

    tokens: when each token came. answers: when the pieces of each answer came.
    failures: why an answer is not whole.
    """

    tokens: list[float] = field(default_factory=list)
    answers: list[list[float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def chat_body(model: str, max_tokens: int, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


@contextlib.asynccontextmanager
async def streaming(
    url: str, headers: Mapping[str, str], models: Sequence[str], *, num: int, max_tokens: int
) -> AsyncIterator[Streamed]:
    """`num` streams, one answer after the other, until the block ends; what runs then is read to
    its end."""
    streamed, stop = Streamed(), asyncio.Event()

    async def ask_on(model: str) -> None:
        body = chat_body(model, max_tokens, stream=True)
        target = Target.post(model, f"{url}/v1/chat/completions", body, headers)
        while not stop.is_set():
            try:
                await _read(target, streamed)
            except (LoadError, OSError, EOFError, ValueError) as error:
                streamed.failures.append(f"{model}: {error or type(error).__name__}")
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)

    running = [asyncio.create_task(ask_on(models[i % len(models)])) for i in range(num)]
    try:
        yield streamed
    finally:
        stop.set()
        await asyncio.gather(*running)


async def _read(target: Target, streamed: Streamed) -> None:
    """One answer.

    Raises:
        LoadError, OSError, EOFError, ValueError: it failed, broke off, or is no answer.
    """
    pieces: list[tuple[float, int]] = []
    num_tokens = None
    is_done = False
    async for line in stream_lines(target):
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]":
            is_done = True
            continue
        chunk = json.loads(line[len(b"data: ") :])
        if "error" in chunk:
            raise LoadError(f"the stream broke: {chunk['error']['code']}")
        text = chunk["choices"] and chunk["choices"][0]["delta"].get("content")
        if text:
            pieces.append((time.perf_counter(), len(text)))
        if chunk.get("usage"):
            num_tokens = chunk["usage"]["completion_tokens"]
    if not is_done or num_tokens is None:
        raise LoadError("the stream ended without its end")
    streamed.answers.append([at for at, _ in pieces])
    streamed.tokens += token_times(pieces, num_tokens)
