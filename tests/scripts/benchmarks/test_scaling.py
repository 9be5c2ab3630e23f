"""Waits of the scaling benchmark end and say what Serve was doing. The run itself needs Ray."""

import asyncio
from typing import Any

import pytest

from deployments.startup.status import Addresses
from scripts.benchmarks import scaling
from scripts.benchmarks.over_http.http_client import LoadError

STATES: dict[str, Any] = {
    "clinic": {"status": "RUNNING", "deployments": {"Model": {"target_num_replicas": 1}}}
}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> scaling._Waits:
    monkeypatch.setattr(scaling, "application_states", lambda addresses: STATES)
    return scaling._Waits(0.05, Addresses("", "http://127.0.0.1:9"))


async def test_what_never_comes_ends_with_what_serve_was_doing(waits: scaling._Waits) -> None:
    told = "that Serve wants a second replica: not within 0.05 s; application clinic: RUNNING"
    with pytest.raises(LoadError, match=told):
        await waits.until("that Serve wants a second replica", waits.wants_two)


async def test_a_call_that_hangs_ends_too(waits: scaling._Waits) -> None:
    async def hangs() -> bool | None:
        await asyncio.sleep(60)
        return True

    with pytest.raises(LoadError, match=r"the second replica: not within 0\.05 s"):
        await waits.until("the second replica", hangs)


async def test_the_first_find_counts(
    waits: scaling._Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = iter([None, 0, 7])

    async def look() -> int | None:
        return next(found)

    monkeypatch.setattr(scaling, "_POLL_S", 0.001)
    assert await waits.until("a number", look) == 0, "zero is a find, None is not"
    wanted: Any = {"clinic": {"deployments": {"Model": {"target_num_replicas": 2}}}}
    monkeypatch.setattr(scaling, "application_states", lambda addresses: wanted)
    assert await waits.wants_two() is True
    monkeypatch.setattr(scaling, "application_states", lambda addresses: {})
    assert await waits.wants_two() is None


def test_a_process_that_was_ready_before_counts_from_the_wish_for_it() -> None:
    start = {"began_at": 90.0, "process_s": 14.0, "base_s": 5.0, "adapters_s": 1.0}
    start |= {"warm_up_s": 2.0, "ready_at": 112.0}
    up = scaling._up(start, 95.0, 101.0, 113.0, 114.5)
    assert up["asked_s"] == 6.0
    assert up["process_s"] == 3.0, "imported at 104, wanted at 101"
    assert (up["seen_s"], up["first_question_s"]) == (1.0, 1.5)
    assert up["start_s"] == 13.5
    parts = ("process_s", "base_s", "adapters_s", "warm_up_s", "seen_s", "first_question_s")
    assert sum(up[part] for part in parts) == pytest.approx(up["start_s"])


def test_the_load_asks_for_a_second_replica_whatever_http_takes() -> None:
    from scripts import benchmark

    args = benchmark._parser().parse_args(["scaling", "--device", "cuda", "--routers", "4"])
    application: dict[str, Any] = {"args": {}}
    scaling._scale(application, args)
    assert application["args"]["model_replicas"]["target"] == 16
    assert application["args"]["router"] == {"replicas": 4}
    args.streams, args.target = 8, None
    scaling._scale(application, args)
    assert application["args"]["model_replicas"]["target"] == 2
