"""Who confirmed a change, and which replicas are named because they did not."""

from typing import Any

import pytest

from deployments.ingress import broadcast
from deployments.ingress.broadcast import ServeReplicas


class Cluster:
    """What Serve would answer: per deployment the replicas' answers and how many run."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {"Model": [{"replica": "m1"}], "Router": []}
        self.running: dict[str, int | None] = {"Model": 1, "Router": 0}
        self.asked: list[str] = []

    def replicas(self) -> ServeReplicas:
        found = ServeReplicas(None)  # type: ignore[arg-type]
        found._models = FakeSet(self, "Model")  # type: ignore[assignment]
        found._routers = FakeSet(self, "Router")  # type: ignore[assignment]
        return found


class FakeSet:
    """Instead of a ReplicaSet."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name

    async def call(self, method: str, timeout_s: float) -> list[Any]:
        self._cluster.asked.append(method)
        return self._cluster.answers[self._name]

    async def num_running(self) -> int | None:
        return self._cluster.running[self._name]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setattr(broadcast, "PAUSE_S", 0.0)
    return Cluster()


def router(number: int, error: str | None = None) -> dict[str, Any]:
    return {"replica": f"router {number}", "error": error}


async def test_all_confirm_routers_first(cluster: Cluster) -> None:
    cluster.answers["Router"] = [router(1), router(2)]
    cluster.running["Router"] = 2
    reply = await cluster.replicas().broadcast(1.0)
    assert (reply.reports, reply.unreachable) == ([{"replica": "m1"}], {})
    assert cluster.asked == ["refresh_catalog", "sync_adapters"]


async def test_a_router_that_no_broadcast_reached_is_named(cluster: Cluster) -> None:
    cluster.answers["Router"] = [router(1)]
    cluster.running["Router"] = 2
    reply = await cluster.replicas().broadcast(1.0)
    assert "2 router replicas run and 1 answered" in reply.unreachable["routers"]


async def test_routers_that_failed_are_named_with_the_cause(cluster: Cluster) -> None:
    cluster.answers["Router"] = [router(7, "is not YAML"), TimeoutError()]
    cluster.running["Router"] = 2
    reply = await cluster.replicas().broadcast(1.0)
    assert reply.unreachable == {"router 7": "is not YAML", "router 1": "TimeoutError"}


async def test_a_model_replica_that_is_missing_is_asked_for_again(cluster: Cluster) -> None:
    cluster.running["Model"] = 2
    reply = await cluster.replicas().broadcast(1.0)
    assert "2 model replicas run and 1 answered" in reply.unreachable["unknown"]
    assert cluster.asked.count("sync_adapters") == broadcast.NUM_TRIES


async def test_when_serve_does_not_say_how_many_run_the_answers_count(cluster: Cluster) -> None:
    cluster.running = {"Model": None, "Router": None}
    reply = await cluster.replicas().broadcast(1.0)
    assert reply.unreachable == {}


async def test_a_report_has_no_effect(cluster: Cluster) -> None:
    """Neither method makes a replica follow, load or retry anything."""
    cluster.answers["Router"] = [router(1)]
    cluster.running["Router"] = 1
    reply = await cluster.replicas().reports(1.0)
    assert (reply.reports, reply.unreachable) == ([{"replica": "m1"}], {})
    assert cluster.asked == ["catalog_state", "adapter_report"]
