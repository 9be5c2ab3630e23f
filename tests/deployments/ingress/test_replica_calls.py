"""Who confirmed a change, and who is named because he did not."""

from types import SimpleNamespace
from typing import Any

import pytest

from deployments.ingress import model_client
from deployments.ingress.model_client import ServeReplicas

MODEL: Any = SimpleNamespace(name="Model")
ROUTER: Any = SimpleNamespace(name="Router")


class Cluster:
    """What Serve would answer: per deployment the broadcast's answers and the replicas that run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, list[Any]] = {"Model": [{"replica": "m1"}], "Router": []}
        self.running: dict[str, int | None] = {"Model": 1, "Router": 0}
        self.asked: list[str] = []
        context = SimpleNamespace(deployment="Router", app_name="clinic")
        monkeypatch.setattr(model_client.serve, "get_replica_context", lambda: context)
        monkeypatch.setattr(model_client.serve, "get_deployment_handle", lambda *_: ROUTER)
        monkeypatch.setattr(model_client, "_broadcast", self.broadcast)
        monkeypatch.setattr(model_client, "_num_running", lambda handle: self.running[handle.name])
        monkeypatch.setattr(model_client, "PAUSE_S", 0.0)

    async def broadcast(self, handle: Any, method: str, timeout_s: float) -> list[Any]:
        self.asked.append(method)
        return self.answers[handle.name]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def router(number: int, error: str | None = None) -> dict[str, Any]:
    return {"replica": f"router {number}", "error": error}


async def test_all_confirm_routers_first(cluster: Cluster) -> None:
    cluster.answers["Router"] = [router(1), router(2)]
    cluster.running["Router"] = 2
    told = await ServeReplicas(MODEL).tell(1.0)
    assert (told.reports, told.silent) == ([{"replica": "m1"}], {})
    assert cluster.asked == ["refresh_catalog", "sync_adapters"]


async def test_a_router_that_no_broadcast_reached_is_named(cluster: Cluster) -> None:
    cluster.answers["Router"] = [router(1)]
    cluster.running["Router"] = 2
    told = await ServeReplicas(MODEL).tell(1.0)
    assert "2 router replicas run and 1 answered" in told.silent["routers"]


async def test_routers_that_failed_are_named_with_the_cause(cluster: Cluster) -> None:
    cluster.answers["Router"] = [router(7, "is not YAML"), TimeoutError()]
    cluster.running["Router"] = 2
    told = await ServeReplicas(MODEL).tell(1.0)
    assert told.silent == {"router 7": "is not YAML", "router 1": "TimeoutError"}


async def test_a_model_replica_that_is_missing_is_asked_for_again(cluster: Cluster) -> None:
    cluster.running["Model"] = 2
    told = await ServeReplicas(MODEL).tell(1.0)
    assert "2 model replicas run and 1 answered" in told.silent["unknown"]
    assert cluster.asked.count("sync_adapters") == model_client.NUM_TRIES


async def test_when_serve_does_not_say_how_many_run_the_answers_count(cluster: Cluster) -> None:
    cluster.running = {"Model": None, "Router": None}
    told = await ServeReplicas(MODEL).tell(1.0)
    assert told.silent == {}
