"""Streamed answers that run all the time, and the time per token that their readers see."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from scripts.benchmarks.over_http.http_client import (
    LoadError,
    PreparedRequest,
    chat_body,
    connect,
    read_stream,
)

QUESTION = "My heart sometimes races for a minute when I climb the stairs, is that dangerous?"
_PAUSE_AFTER_FAILURE_S = 0.2

Window = tuple[float, float]
"""From and to, in seconds of `time.perf_counter`; the end is excluded."""


@dataclass
class Streamed:
    """What all streams received; times are of `time.perf_counter`."""

    tokens: list[float] = field(default_factory=list)  # when each token came
    answers: list[list[float]] = field(default_factory=list)  # when the pieces of each came
    failures: list[str] = field(default_factory=list)  # why an answer is incomplete


@contextlib.asynccontextmanager
async def streaming(
    url: str, headers: Mapping[str, str], models: Sequence[str], *, num: int, max_tokens: int
) -> AsyncIterator[Streamed]:
    """Keep `num` streams busy, one answer of `max_tokens` tokens after the other, until the block
    ends: answers that are running then are read to their end, or given up if the block raises."""
    streamed, stop = Streamed(), asyncio.Event()

    async def ask_repeatedly(session: aiohttp.ClientSession, model: str) -> None:
        # Whatever random weights say: an answer that ends early is no load.
        body = chat_body(QUESTION, max_tokens, model=model) | {"min_tokens": max_tokens}
        request = PreparedRequest.post(model, f"{url}/v1/chat/completions", body, headers)
        while not stop.is_set():
            try:
                answer = await read_stream(session, request)
            except (LoadError, OSError, TimeoutError, ValueError, aiohttp.ClientError) as error:
                streamed.failures.append(f"{model}: {error or type(error).__name__}")
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
                continue
            streamed.answers.append([at for at, _ in answer.pieces])
            streamed.tokens += token_times(answer.pieces, answer.num_tokens)

    async with connect() as session:
        running = [
            asyncio.create_task(ask_repeatedly(session, models[i % len(models)]))
            for i in range(num)
        ]
        try:
            yield streamed
        except BaseException:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            raise
        stop.set()
        await asyncio.gather(*running)


def token_times(pieces: Sequence[tuple[float, int]], num_tokens: int) -> list[float]:
    """Return when each token of an answer came, from its pieces (time, characters).

    A piece may hold several tokens, and a stream tells their number only at its end: tokens are
    assigned to pieces in proportion to characters.
    """
    total = sum(length for _, length in pieces)
    times: list[float] = []
    so_far = 0
    for time, length in pieces:
        so_far += length
        times += [time] * (round(num_tokens * so_far / total) - len(times))
    return times


def per_token_ms(tokens: Sequence[float], windows: Sequence[Window], rows: int) -> float:
    """Return the milliseconds that one row waits for its next token.

    Args:
        tokens: when each token of any row came.
        rows: number of rows that were busy all the time.
    """
    seconds = sum(stop - start for start, stop in windows)
    count = sum(1 for t in tokens if any(start <= t < stop for start, stop in windows))
    return seconds * rows / max(1, count) * 1000


def longest_gap_s(answers: Iterable[Sequence[float]], windows: Sequence[Window]) -> float:
    """Return the longest wait between two pieces of one answer that overlaps a window, or 0."""
    gaps = [
        later - earlier
        for times in answers
        for earlier, later in itertools.pairwise(times)
        if any(earlier < stop and later > start for start, stop in windows)
    ]
    return max(gaps, default=0.0)
