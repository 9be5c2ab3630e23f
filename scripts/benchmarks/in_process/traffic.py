"""Ask an engine of this process as clients would: so many at a time, or at random times."""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Sequence
from functools import partial

from deployments.engine.engine import Engine
from deployments.engine.errors import EngineError
from deployments.engine.request import Request
from scripts.benchmarks.over_http.http_client import StreamedAnswer
from scripts.benchmarks.over_http.open_loop import Outcome, at_times


async def answered(engine: Engine, request: Request) -> Outcome:
    """Return one answer, timed by its reader; a piece's length is in tokens. It fails with the
    error's code, or if it has another number of tokens than it asked for."""
    sent_at, pieces, num_tokens = time.perf_counter(), [], 0
    try:
        async for event in engine.generate(request):
            if event.num_tokens > num_tokens:
                pieces.append((time.perf_counter(), event.num_tokens - num_tokens))
                num_tokens = event.num_tokens
    except EngineError as error:
        return error.code
    if event.error is not None:
        return event.error.code
    if num_tokens != request.sampling.max_tokens:
        return f"{num_tokens} tokens, not {request.sampling.max_tokens}"
    return StreamedAnswer(sent_at, time.perf_counter(), pieces, num_tokens)


async def closed(engine: Engine, requests: Sequence[Request], at_once: int) -> list[StreamedAnswer]:
    """Answer every request, `at_once` at a time.

    Raises:
        RuntimeError: one failed.
    """
    free = asyncio.Semaphore(at_once)

    async def one(request: Request) -> StreamedAnswer:
        async with free:
            outcome = await answered(engine, request)
        if isinstance(outcome, str):
            raise RuntimeError(f"{request.request_id}: {outcome}")
        return outcome

    return list(await asyncio.gather(*(one(request) for request in requests)))


async def beside(
    engine: Engine, requests: Sequence[Request], at_once: int, long: Request
) -> tuple[list[StreamedAnswer], list[StreamedAnswer]]:
    """Do `closed` while another request is answered again and again; returns its answers too.

    Each time it begins with another token, so that nothing of it was read before.

    Raises:
        RuntimeError: one failed.
    """
    read: list[StreamedAnswer] = []

    async def endless() -> None:
        for number in itertools.count():
            first = (long.prompt_ids[0] + number % 100 + 1, *long.prompt_ids[1:])
            read.extend(await closed(engine, [dataclasses.replace(long, prompt_ids=first)], 1))

    background = asyncio.create_task(endless())
    try:
        answers = await closed(engine, requests, at_once)
    finally:
        background.cancel()
        await asyncio.wait([background])
    if not background.cancelled():
        background.result()
    return answers, read


async def opened(
    engine: Engine, requests: Sequence[Request], times: Sequence[float]
) -> list[Outcome]:
    """Ask for each answer at its time, in seconds from now, whether others have ended or not."""
    asks = [partial(answered, engine, request) for request in requests]
    return await at_times(times, asks, time.perf_counter())
