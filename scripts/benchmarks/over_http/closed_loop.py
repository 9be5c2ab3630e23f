"""A closed loop of streams over HTTP: each asks for one answer after the other."""

import asyncio
import functools
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import aiohttp

from scripts.benchmarks.command import spread
from scripts.benchmarks.over_http.http_client import (
    PreparedRequest,
    StreamedAnswer,
    connect,
    read_stream,
)
from scripts.benchmarks.over_http.streams import longest_gap_s, token_times

WARM_UP_S = 6.0
_EDGE_S = 1.0  # of a run's beginning, when not all streams are there yet


async def closed_loop(
    clients: ProcessPoolExecutor,
    num_clients: int,
    requests: Sequence[PreparedRequest],
    num: int,
    seconds: float,
    *,
    keeps_alive: bool = True,
    answers: int | None = None,
) -> tuple[list[StreamedAnswer], float, float]:
    """Return the answers of `num` streams, and from when to when all of them were asking.

    Args:
        clients: processes that ask, `num_clients` of them.
        requests: asked in turn, by each stream from another one on.
        seconds: after which nobody asks again.
        keeps_alive: one connection for all requests of a stream; else one for each request.
        answers: at most, of each stream; None: as many as it gets in that time.
    """
    started = time.perf_counter()  # one clock for all processes of a machine
    shares = [range(first, num, num_clients) for first in range(min(num, num_clients))]
    loop = asyncio.get_running_loop()
    ask = functools.partial(_ask_all, until=started + seconds, most=answers, keeps=keeps_alive)
    asking = [loop.run_in_executor(clients, ask, requests, share) for share in shares]
    found = itertools.chain.from_iterable(await asyncio.gather(*asking))
    return list(found), started + _EDGE_S, started + seconds


def _ask_all(
    requests: Sequence[PreparedRequest],
    streams: Sequence[int],
    *,
    until: float,
    most: int | None,
    keeps: bool,
) -> list[StreamedAnswer]:
    """Run some of the streams in this process, until that time."""
    answers: list[StreamedAnswer] = []

    async def ask(session: aiohttp.ClientSession, first: int) -> None:
        turn = itertools.cycle([*requests[first:], *requests[:first]])
        for request in itertools.islice(turn, most):
            if time.perf_counter() >= until:
                return
            answers.append(await read_stream(session, request))

    async def ask_together() -> None:
        async with connect(force_close=not keeps) as session:
            await asyncio.gather(*(ask(session, number % len(requests)) for number in streams))

    asyncio.run(ask_together())
    return answers


def figures(
    num: int, answers: Sequence[StreamedAnswer], start: float, stop: float
) -> dict[str, Any]:
    """Return what the report shows of `num` streams: tokens a second between `start` and `stop`,
    seconds to the first token, and the longest wait inside an answer."""
    tokens = [at for a in answers for at in token_times(a.pieces, a.num_tokens)]
    counted = sum(start <= at < stop for at in tokens)
    gaps = [longest_gap_s([[at for at, _ in a.pieces]], [(start, stop)]) for a in answers]
    return {
        "streams": num,
        "tokens_per_s": round(counted / (stop - start), 1),
        "answers": len(answers),
        "first_token_s": spread([answer.first_token_s for answer in answers], 99, 4),
        "longest_gap_s": spread(gaps, 99, 4),
    }
