"""A change of versions: new routers take over when a new model is loaded, new models after them."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from ray.serve.exceptions import DeploymentUnavailableError

from deployments import handover
from deployments.handover import ModelHandover, RouterHandover

OLD, NEW = "old", "new"
GONE = DeploymentUnavailableError("Router")  # type: ignore[arg-type]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Cluster:
    """The routers that run, as a broadcast reaches them."""

    def __init__(self, *running: RouterHandover) -> None:
        self.running = list(running)
        self.num_calls = 0

    async def call(self, method: str, timeout_s: float, *args: Any) -> list[Any]:
        self.num_calls += 1
        if not self.running:
            raise GONE
        each = {"announce_model": "announce", "announced_models": "announced"}[method]
        return [getattr(router, each)(*args) for router in self.running]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_POLL_S", 0.005)
    monkeypatch.setattr(handover, "_LAST_CALLS_S", 0.1)


def router(cluster: Cluster, config: str, *, is_early: bool = True) -> RouterHandover:
    return RouterHandover(config, lambda: cluster, lambda: is_early)


async def started(waiting: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    task = asyncio.create_task(waiting)
    await asyncio.sleep(0.03)
    return task


async def test_each_side_waits_for_the_other_and_the_routers_are_first() -> None:
    cluster = Cluster()
    cluster.running = [router(cluster, OLD), router(cluster, OLD)]
    new_routers = [router(cluster, NEW) for _ in range(2)]
    waiting = [await started(each.wait()) for each in new_routers]
    assert not any(task.done() for task in waiting), "the old models answer while new ones load"
    model = await started(ModelHandover(NEW, lambda: cluster).wait())
    await asyncio.gather(*waiting)
    assert not model.done(), "the old routers still run"
    for place, each in enumerate(new_routers):  # one after the other
        cluster.running[place] = each
        await asyncio.sleep(0.03)
        assert not model.done()
    await asyncio.sleep(0.03)
    assert not model.done(), "the last calls of the old routers are on their way"
    await asyncio.wait_for(model, 2)


async def test_a_router_that_starts_late_hears_of_the_model_from_a_new_one() -> None:
    cluster = Cluster()
    first = router(cluster, NEW)
    cluster.running = [first]
    first.announce(NEW)
    await asyncio.wait_for(router(cluster, NEW).wait(), 1)


@pytest.mark.parametrize("running", [[], [NEW], [NEW, NEW]])
async def test_nobody_waits_at_a_first_start_or_where_a_replica_is_replaced(
    running: list[str],
) -> None:
    cluster = Cluster()
    cluster.running = [router(cluster, config) for config in running]
    model = ModelHandover(NEW, lambda: cluster)
    await asyncio.wait_for(model.wait(), 0.1)
    late = router(cluster, NEW, is_early=False)
    await asyncio.wait_for(late.wait(), 0.1)
    cluster.running = [router(cluster, OLD)]  # later it is the old one itself
    num_calls = cluster.num_calls
    await asyncio.wait_for(model.wait(), 0.1)
    late._is_early = lambda: True
    await asyncio.wait_for(late.wait(), 0.1)
    assert cluster.num_calls == num_calls, "a health check asks nobody"


async def test_a_router_that_does_not_know_the_question_holds_nobody_up() -> None:
    """An upgrade from a version without these calls: as before, each side goes by itself."""

    class Ignorant:
        async def call(self, method: str, timeout_s: float, *args: Any) -> list[Any]:
            return [AttributeError(method)]

    await asyncio.wait_for(ModelHandover(NEW, Ignorant).wait(), 0.1)
    early = [True]
    waiting = await started(RouterHandover(NEW, Ignorant, lambda: early[0]).wait())
    assert not waiting.done()
    early[0] = False
    await asyncio.wait_for(waiting, 1)


async def test_a_model_that_failed_is_forgotten() -> None:
    clock = Clock()
    old = RouterHandover(OLD, Cluster, lambda: False, clock)
    assert old.announce(NEW) == OLD
    assert old.announced() == [NEW]
    clock.now += 6
    assert old.announced() == []


async def test_a_new_version_that_never_comes_leaves_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "TIMEOUT_S", 0.05)
    cluster = Cluster()
    cluster.running = [router(cluster, OLD)]
    for waiting in (router(cluster, NEW), ModelHandover(NEW, lambda: cluster)):
        with pytest.raises(TimeoutError):
            await waiting.wait()
