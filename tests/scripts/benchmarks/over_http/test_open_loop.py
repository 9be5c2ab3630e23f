"""Requests at random times: whom they ask, when, what is counted, and where a rate breaks."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from scripts.benchmarks.over_http.http_client import PreparedRequest, StreamedAnswer
from scripts.benchmarks.over_http.open_loop import (
    at_times,
    draw,
    limits_of,
    open_loop,
    poisson_times,
    rate_figures,
)
from tests.scripts.benchmarks.over_http.test_http_client import (
    DONE,
    REFUSED,
    USAGE,
    Server,
    piece,
    stream,
)

pytestmark = pytest.mark.slow

NAMES = [f"a{number}" for number in range(8)]


def test_popularity() -> None:
    assert draw(NAMES, "turns", 10) == [*NAMES, "a0", "a1"]
    assert set(draw(NAMES, "one", 10)) == {"a0"}
    uniform, zipf = (Counter(draw(NAMES, kind, 8000)) for kind in ("uniform", "zipf"))
    assert all(850 < uniform[name] < 1150 for name in NAMES)
    total = sum(1 / rank for rank in range(1, 9))
    for rank, name in enumerate(NAMES, 1):
        assert zipf[name] / 8000 == pytest.approx(1 / rank / total, abs=0.02)
    assert draw(NAMES, "zipf", 20, seed=1) == draw(NAMES, "zipf", 20, seed=1)
    assert draw(NAMES, "zipf", 20, seed=1) != draw(NAMES, "zipf", 20, seed=2)


def test_requests_come_as_a_poisson_process() -> None:
    times = poisson_times(100, 50)
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert times == sorted(times)
    assert times[-1] < 50
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1), "exponential gaps: as wide as their mean"
    assert len(poisson_times(0.001, 1)) == 1, "at least one request"


async def test_nobody_waits_for_the_others() -> None:
    begun: list[float] = []

    async def slow() -> int:
        begun.append(time.perf_counter())
        await asyncio.sleep(0.3)
        return len(begun)

    start = time.perf_counter()
    await at_times([0.0, 0.02, 0.04], [slow] * 3, start)
    assert begun[-1] - start < 0.25


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """In place of the processes that ask."""
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def test_answers_and_failures_over_http(threads: Any) -> None:
    server = Server()
    server.answer = stream(piece("ab"), USAGE, DONE)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/ask"
    requests = [PreparedRequest.post(name, url, {"model": name}) for name in NAMES]
    outcomes = await open_loop(threads, 2, requests, 40, 0.5)
    assert len(outcomes) == len(server.bodies) == len(poisson_times(40, 0.5))
    assert all(isinstance(outcome, StreamedAnswer) for outcome in outcomes)
    server.answer = REFUSED
    assert set(await open_loop(threads, 2, requests, 40, 0.2)) == {"status 429"}
    server.answer = stream(USAGE, DONE)
    assert set(await open_loop(threads, 1, requests, 40, 0.2)) == {"the stream held no text"}
    listening.close()


def answer(sent_at: float, first_s: float, pieces: int = 3) -> StreamedAnswer:
    times = [sent_at + first_s + 0.1 * number for number in range(pieces)]
    return StreamedAnswer(sent_at, times[-1], [(at, 2) for at in times], 2 * pieces)


def test_the_figures_of_a_rate() -> None:
    outcomes = [answer(10.0, 0.1), answer(10.5, 0.1), answer(10.7, 0.3)]
    found = rate_figures(3, outcomes, 0.35)
    assert (found["requests"], found["failed"], found["holds"]) == (3, 0, True)
    assert found["answers_per_s"] == pytest.approx(3 / 1.2, abs=0.01)
    assert found["tokens_per_s"] == pytest.approx(18 / 1.2, abs=0.1)
    assert found["first_token_s"] == {"n": 3, "median": 0.1, "p95": 0.3, "max": 0.3}
    assert found["time_per_token_ms"]["median"] == pytest.approx(200 / 5)
    assert found["longest_gap_s"]["max"] == pytest.approx(0.1)
    assert not rate_figures(3, outcomes, 0.2)["holds"], "the first token comes too late"
    failing = rate_figures(3, [*outcomes, "queue_full"], 0.35)
    assert (failing["failed"], failing["holds"]) == (1, False)
    assert failing["failures"] == {"queue_full": 1}
    assert rate_figures(3, ["status 503"], 0.35)["failed"] == 1, "no answer at all"
    assert "time_per_token_ms" not in rate_figures(3, [answer(0.0, 0.1, pieces=1)], 0.35)


@pytest.mark.parametrize(
    ("holds", "up_to", "breaks_at"),
    [
        ([True, True, False, True], 20, 30),
        ([True] * 4, 40, None),
        ([False, True, True, True], None, 10),
    ],
)
def test_a_rate_breaks_where_the_first_one_does(
    holds: list[bool], up_to: float | None, breaks_at: float | None
) -> None:
    rates = [{"rate_per_s": 10 * (n + 1), "holds": held} for n, held in enumerate(holds)]
    found = limits_of(rates[::-1], 0.2)
    assert (found["holds_up_to_per_s"], found["breaks_at_per_s"]) == (up_to, breaks_at)
