"""Serve's own broadcast, in its local testing mode: one replica in this process, no cluster."""

import asyncio
import threading
import time

import pytest
from ray import serve

from deployments.replica_set import ReplicaSet


class Model:
    async def info(self) -> dict[str, str]:
        return {"replica": "m1"}

    async def slow(self) -> None:
        await asyncio.sleep(60)

    def broken(self) -> None:
        raise RuntimeError("a bug")


@pytest.fixture(scope="module")
def replicas() -> ReplicaSet:
    bound = serve.deployment(Model).bind()
    return ReplicaSet(serve.run(bound, name="local", _local_testing_mode=True))


async def test_each_replica_answers_or_gives_its_exception(replicas: ReplicaSet) -> None:
    assert await replicas.call("info", 5.0) == [{"replica": "m1"}]
    [error] = await replicas.call("broken", 5.0)
    assert isinstance(error, RuntimeError)


async def test_one_that_does_not_answer_in_time_is_a_timeout_of_its_own(
    replicas: ReplicaSet,
) -> None:
    """The broadcast as a whole returns, so what the other replicas said is not lost."""
    started = time.monotonic()
    [error] = await replicas.call("slow", 0.2)
    assert isinstance(error, TimeoutError)
    assert time.monotonic() - started < 5


async def test_outside_a_cluster_nobody_knows_how_many_run(replicas: ReplicaSet) -> None:
    assert await replicas.call("info", 5.0)
    # `serve.status` would start a cluster here, so only its failure is looked at.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "status", _no_status)
        assert await replicas.num_running() is None


def _no_status() -> None:
    raise serve.exceptions.RayServeException("no cluster")


async def test_a_controller_that_hangs_is_one_that_does_not_say(replicas: ReplicaSet) -> None:
    gate = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "status", gate.wait)
        patch.setattr("deployments.replica_set._STATUS_TIMEOUT_S", 0.05)
        asked = [replicas.num_running() for _ in range(20)]
        assert await asyncio.wait_for(asyncio.gather(*asked), 5) == [None] * 20
        assert not replicas.is_healthy()
        assert await replicas.call("info", 5.0) == [{"replica": "m1"}]
        gate.set()
