"""What a long run holds is counted by role, and its growth begins after the warm-up."""

import asyncio
import os
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from deployments.startup.processes import ProcessTree
from scripts.chaos_runs.samples import (
    HELD,
    Sample,
    drift,
    held_by_role,
    num_series,
    sample_forever,
)

METRICS = '# HELP a b\n# TYPE a counter\na 1\na{b="c"} 2\n'
FAILURES: list[web.HTTPException] = []


def sample(pss_mib: float, router_mib: float) -> Sample:
    rest = {"descriptors": 5.0, "threads": 3.0}
    return {
        "all": {"pss_mib": pss_mib, **rest, "series": 7.0},
        "router replica": {"pss_mib": router_mib, **rest},
    }


def test_this_process_is_counted_and_one_that_has_ended_is_not() -> None:
    held = held_by_role([os.getpid(), 2**22 + 1])
    assert held["all"] == held["other"]
    assert held["all"]["pss_mib"] > 10
    assert held["all"]["descriptors"] >= 3
    assert held["all"]["threads"] >= 1


def test_growth_is_from_the_end_of_the_warm_up() -> None:
    minutes = [(60.0 * n, sample(100 if n < 10 else 200 + n, 50 + n)) for n in range(61)]
    found = drift(minutes, 600)
    assert found["memory_growth"] == pytest.approx(258 / 212 - 1, abs=0.001)
    assert found["from_to"]["router replica"]["pss_mib"] == [62.0, 108.0]
    assert found["from_to"]["all"]["series"] == [7.0, 7.0]
    assert {name: len(values) for name, values in found["all"].items()} == dict.fromkeys(HELD, 61)


def test_a_run_that_is_shorter_than_the_warm_up_has_no_growth() -> None:
    assert drift([(0.0, sample(100, 50)), (60.0, sample(150, 50))], 600)["memory_growth"] == 0


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async def metrics(request: web.Request) -> web.Response:
        if FAILURES:
            raise FAILURES.pop()
        return web.Response(text=METRICS)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/metrics"
    await runner.cleanup()


async def test_series_are_lines_that_are_no_comments(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        assert await num_series(session, url) == 2


async def test_a_scrape_that_fails_costs_its_sample_alone(url: str) -> None:
    FAILURES.extend([web.HTTPServiceUnavailable(), web.HTTPInternalServerError()])
    found: list[tuple[float, Sample]] = []
    async with aiohttp.ClientSession() as session:
        tree = ProcessTree(os.getpid())
        task = asyncio.create_task(sample_forever(session, url, tree, 0.01, found))
        async with asyncio.timeout(10):
            while len(found) < 2 and not task.done():
                await asyncio.sleep(0.01)
        task.cancel()
    assert FAILURES == []
    assert [held["all"]["series"] for _, held in found][:2] == [2, 2]
    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(sample_forever(session, "http://127.0.0.1:9", tree, 9, found))
        await asyncio.sleep(0.3)
        assert not task.done(), "nobody listens there: no sample"
        task.cancel()
