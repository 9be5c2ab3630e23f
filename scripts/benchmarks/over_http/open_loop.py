"""Requests at random times, whether others have ended or not: what they see at each rate.

`draw` chooses whom each request asks, `poisson_times` when; both are seeded.
"""

import argparse
import asyncio
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import aiohttp

from scripts.arguments import above_zero
from scripts.benchmarks.command import spread
from scripts.benchmarks.over_http.http_client import (
    LoadError,
    PreparedRequest,
    StreamedAnswer,
    connect,
    read_stream,
)
from scripts.benchmarks.over_http.streams import longest_gap_s

Popularity = Literal["turns", "one", "uniform", "zipf"]
POPULARITIES: tuple[Popularity, ...] = get_args(Popularity)
Outcome = StreamedAnswer | str
"""An answer, or why there is none."""

_STATUS = re.compile(r"status \d+")  # without the request's name and the answer's text
_AHEAD_S = 0.5  # of the first request: all processes that ask are there by then
T = TypeVar("T")


def add_rates(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of requests that come at random times."""
    add = parser.add_argument
    add("--rates", type=above_zero, nargs="+", default=[], help="requests a second, one run each")
    add("--rate_s", type=above_zero, default=5.0, help="seconds of each rate")
    limit = "seconds; the p95 of the first token at which a rate no longer holds"
    add("--first_token_p95_s", type=above_zero, default=0.2, help=limit)


def draw(items: Sequence[T], popularity: Popularity, num: int, seed: int = 0) -> list[T]:
    """Return whom `num` requests ask: the items in turn, the first alone, all alike at random, or
    at random by Zipf's law (s = 1), the first most often."""
    if popularity in ("turns", "one"):
        asked = items[:1] if popularity == "one" else items
        return [asked[number % len(asked)] for number in range(num)]
    weights = [1 / rank if popularity == "zipf" else 1.0 for rank in range(1, len(items) + 1)]
    return random.Random(seed).choices(items, weights, k=num)


def poisson_times(rate_per_s: float, seconds: float, seed: int = 0) -> list[float]:
    """Return the seconds from the start at which requests come: a Poisson process; at least one."""
    rng = random.Random(seed)
    times = [rng.expovariate(rate_per_s)]
    while (following := times[-1] + rng.expovariate(rate_per_s)) < seconds:
        times.append(following)
    return times


async def at_times(
    times: Sequence[float], asks: Sequence[Callable[[], Awaitable[T]]], start: float
) -> list[T]:
    """Begin each of `asks` at its time after `start` (time.perf_counter), and wait for them all."""
    running = []
    for at, ask in zip(times, asks, strict=True):
        await asyncio.sleep(start + at - time.perf_counter())
        running.append(asyncio.ensure_future(ask()))
    return list(await asyncio.gather(*running))


async def open_loop(
    clients: ProcessPoolExecutor,
    num_clients: int,
    requests: Sequence[PreparedRequest],
    rate_per_s: float,
    seconds: float,
    seed: int = 0,
) -> list[Outcome]:
    """Send requests over HTTP, in turn, at the times of a Poisson process.

    Args:
        clients: processes that ask, `num_clients` of them.
    """
    times = poisson_times(rate_per_s, seconds, seed)
    asked = list(itertools.islice(itertools.cycle(requests), len(times)))
    start = time.perf_counter() + _AHEAD_S  # one clock for all processes of a machine
    loop = asyncio.get_running_loop()
    shares = [slice(first, None, num_clients) for first in range(min(num_clients, len(times)))]
    asking = [
        loop.run_in_executor(clients, _ask_share, asked[share], times[share], start)
        for share in shares
    ]
    return list(itertools.chain.from_iterable(await asyncio.gather(*asking)))


def _ask_share(
    requests: Sequence[PreparedRequest], times: Sequence[float], start: float
) -> list[Outcome]:
    async def ask(session: aiohttp.ClientSession, request: PreparedRequest) -> Outcome:
        try:
            answer = await read_stream(session, request)
        except (LoadError, OSError, TimeoutError, ValueError, aiohttp.ClientError) as error:
            status = _STATUS.search(str(error))
            return status[0] if status else str(error) or type(error).__name__
        return answer if answer.pieces else "the stream held no text"

    async def ask_all() -> list[Outcome]:
        async with connect() as session:
            asks = [partial(ask, session, request) for request in requests]
            return await at_times(times, asks, start)

    return asyncio.run(ask_all())


def times_of(answers: Sequence[StreamedAnswer]) -> dict[str, Any]:
    """Return spreads of what readers wait for: the first token, each further one (the mean of an
    answer, from its first piece to its last), and the longest wait between two pieces."""
    per_token_ms = [
        1000 * (answer.pieces[-1][0] - answer.pieces[0][0]) / (answer.num_tokens - 1)
        for answer in answers
        if len(answer.pieces) > 1 and answer.num_tokens > 1
    ]
    whole = (float("-inf"), float("inf"))
    gaps = [longest_gap_s([[at for at, _ in answer.pieces]], [whole]) for answer in answers]
    found = {"first_token_s": spread([answer.first_token_s for answer in answers], 95, 4)}
    if per_token_ms:
        found["time_per_token_ms"] = spread(per_token_ms, 95)
    return found | {"longest_gap_s": spread(gaps, 95, 4)}


def rate_figures(
    rate_per_s: float, outcomes: Sequence[Outcome], first_token_p95_s: float
) -> dict[str, Any]:
    """Return what the report shows of one rate; `holds`: no request failed, and the p95 of the
    first token is within the limit."""
    answers = [outcome for outcome in outcomes if isinstance(outcome, StreamedAnswer)]
    failures = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
    figures: dict[str, Any] = {
        "rate_per_s": rate_per_s,
        "requests": len(outcomes),
        "failed": sum(failures.values()),
        "holds": False,
    }
    if failures:
        figures["failures"] = dict(failures.most_common(3))
    if not answers:
        return figures
    seconds = max(a.ended_at for a in answers) - min(a.sent_at for a in answers)
    times = times_of(answers)
    return figures | {
        "holds": not failures and times["first_token_s"]["p95"] <= first_token_p95_s,
        "answers_per_s": round(len(answers) / seconds, 2),
        "tokens_per_s": round(sum(a.num_tokens for a in answers) / seconds, 1),
        **times,
    }


def limits_of(rates: Sequence[Mapping[str, Any]], first_token_p95_s: float) -> dict[str, Any]:
    """Return the highest rate up to which each holds, and the first one that does not, or None."""
    ordered = sorted(rates, key=lambda one: one["rate_per_s"])
    held = list(itertools.takewhile(lambda one: one["holds"], ordered))
    return {
        "first_token_p95_limit_s": first_token_p95_s,
        "holds_up_to_per_s": held[-1]["rate_per_s"] if held else None,
        "breaks_at_per_s": ordered[len(held)]["rate_per_s"] if len(held) < len(ordered) else None,
    }
