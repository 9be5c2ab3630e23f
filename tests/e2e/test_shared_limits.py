"""A key's limits over two router replicas on real Ray Serve, and when one of them or the ledger of
the limits dies."""

import contextlib
import os
import signal
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deployments.api.access.api_keys import KeyStore, new_key
from deployments.api.access.limit_ledger import LEASE_S, Turn
from tests.e2e.conftest import DOOR_STEP_S

FOLLOW_S = 1.2  # in which both routers have read a change of the keys


@pytest.fixture(scope="module")
def state(door_state: Path) -> Path:
    return door_state


@pytest.fixture(scope="module")
def clinic(door: httpx.Client) -> httpx.Client:
    return door


def key_with(state: Path, **limits: Any) -> dict[str, str]:
    key, record = new_key("user", **limits)
    KeyStore(state).change(lambda records: [*records, record])
    time.sleep(FOLLOW_S)
    return {"authorization": f"Bearer {key}"}


def change_limits(state: Path, key: dict[str, str], **limits: Any) -> None:
    key_id = key["authorization"].split("-")[1]
    KeyStore(state).change(
        lambda records: [r.model_copy(update=limits) if r.id == key_id else r for r in records]
    )
    time.sleep(FOLLOW_S)


def statuses(clinic: httpx.Client, key: dict[str, str], number: int) -> Counter[int]:
    """Ask so many times, four at once, so that both routers get some."""

    def ask(_: int) -> int:
        return clinic.get("/v1/models", headers=key).status_code

    with ThreadPoolExecutor(4) as pool:
        return Counter(pool.map(ask, range(number)))


def test_a_rate_holds_over_both_routers_and_follows_a_change(
    clinic: httpx.Client, state: Path
) -> None:
    key = key_with(state, requests_per_minute=40)
    started = time.monotonic()
    seen = statuses(clinic, key, 120)
    refilled = 40 * (time.monotonic() - started) / 60
    assert set(seen) == {200, 429}
    assert 36 <= seen[200] <= 40 + refilled
    change_limits(state, key, requests_per_minute=4000)
    seen = statuses(clinic, key, 100)
    assert seen[200] >= 60, seen  # a second's worth and more; before, 1


def open_answers(
    clinic: httpx.Client, key: dict[str, str], pool: ThreadPoolExecutor, number: int, seconds: float
) -> list[Future[int]]:
    body = {"question": "a rash", "max_tokens": round(seconds / DOOR_STEP_S)}

    def ask() -> int:
        try:
            return httpx.post(
                f"{clinic.base_url}ask", json=body, headers=key, timeout=60
            ).status_code
        except httpx.HTTPError:
            return 0

    return [pool.submit(ask) for _ in range(number)]


def test_requests_at_the_same_time_hold_over_both_routers(
    clinic: httpx.Client, state: Path
) -> None:
    key = key_with(state, max_concurrent=4)
    with ThreadPoolExecutor(12) as pool:
        seen = Counter(f.result() for f in open_answers(clinic, key, pool, 12, seconds=4))
    assert seen == {200: 4, 429: 8}
    with ThreadPoolExecutor(4) as pool:
        again = Counter(f.result() for f in open_answers(clinic, key, pool, 4, seconds=0.5))
    assert again == {200: 4}


@pytest.mark.long
def test_a_router_that_dies_gives_its_lease_back(clinic: httpx.Client, state: Path) -> None:
    key = key_with(state, max_concurrent=6)
    with ThreadPoolExecutor(12) as pool:
        held = open_answers(clinic, key, pool, 6, seconds=20)
        time.sleep(2)
        victim = next(p for p in psutil.process_iter() if "door:Router" in " ".join(p.cmdline()))
        os.kill(victim.pid, signal.SIGKILL)
        time.sleep(LEASE_S + 3)
        num_lost = sum(future.done() for future in held)
        assert 1 <= num_lost <= 5
        seen = Counter(f.result() for f in open_answers(clinic, key, pool, num_lost, seconds=1))
        assert seen == {200: num_lost}
        assert Counter(f.result() for f in held)[200] == 6 - num_lost


def test_the_ledger_ends_when_no_router_is_left(clinic: httpx.Client) -> None:
    import ray

    from deployments.ingress.limit_actor import LimitActor

    options = {"name": "limits-short", "namespace": "polyclinic", "lifetime": "detached"}
    actor = ray.remote(LimitActor).options(max_restarts=-1, **options).remote(True, unused_s=1.0)
    assert ray.get(actor.exchange.remote("router", Turn(1, 0), {}), timeout=60) == {}
    deadline = time.monotonic() + LEASE_S + 15
    while is_there("limits-short"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def is_there(actor: str) -> bool:
    import ray

    with contextlib.suppress(ValueError):
        ray.get_actor(actor, namespace="polyclinic")
        return True
    return False


@pytest.mark.long
def test_the_ledger_dies_and_no_request_fails_for_it(clinic: httpx.Client, state: Path) -> None:
    import ray

    key = key_with(state, requests_per_minute=60)
    started = time.monotonic()
    seen = statuses(clinic, key, 70)
    ray.kill(ray.get_actor("limits-door", namespace="polyclinic"), no_restart=False)
    while time.monotonic() - started < 20:
        seen += statuses(clinic, key, 10)
        time.sleep(0.2)
    elapsed_s = time.monotonic() - started
    assert set(seen) == {200, 429}, seen
    assert seen[200] <= 60 * (1 + elapsed_s / 60) + 60 / 10 + 2
    assert seen[200] >= 60
