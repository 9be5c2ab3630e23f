"""An unreachable or broken replica is listed, and hides nobody else's answer."""

import time
from typing import Any

import httpx
import pytest

from deployments.ingress import operator
from deployments.ingress.operator import ClusterReport, NamedReplicas, assemble
from deployments.ingress.traffic import TrafficLog
from deployments.replica_set import ReplicaSet
from tests.deployments.conftest import SmallBackend


class Handle:
    """A deployment handle whose broadcast reaches these replicas: each a value, an exception, or
    None for one that does not answer. Without a list no replica is known yet."""

    def __init__(self, outcomes: list[Any] | None) -> None:
        self.outcomes = outcomes
        self.methods: list[str] = []

    def broadcast(self, method: str) -> "Handle":
        self.methods.append(method)
        return self

    def results(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        """As Serve's: it blocks until all have answered, or for `timeout_s`."""
        assert return_exceptions
        if self.outcomes is None or None in self.outcomes:
            time.sleep(timeout_s)
        if self.outcomes is None:
            raise TimeoutError
        return [TimeoutError() if found is None else found for found in self.outcomes]


def traffic_of(replica: str) -> dict[str, Any]:
    return {"replica": replica, "catalog_revision": 7, "snapshot": TrafficLog().snapshot()}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> ClusterReport:
    """Two model replicas, one router replica; 0.2 s of patience."""
    monkeypatch.setattr(operator, "REPLICA_TIMEOUT_S", 0.2)
    models = Handle([{"replica": "m2"}, {"replica": "m1"}])
    cluster = ClusterReport(models)  # type: ignore[arg-type]
    cluster._routers = NamedReplicas(ReplicaSet(Handle([traffic_of("r1")])))  # type: ignore[arg-type]
    return cluster


def handle_of(replicas: NamedReplicas | None) -> Handle:
    assert replicas is not None
    handle: Any = replicas._replicas._handle
    assert isinstance(handle, Handle)
    return handle


async def test_every_replica_is_asked(cluster: ClusterReport) -> None:
    report = await cluster.report()
    assert [model["replica"] for model in report["models"]] == ["m1", "m2"]
    assert [router["replica"] for router in report["routers"]] == ["r1"]
    assert report["routers"][0]["catalog_revision"] == 7
    assert report["all_routers"]["num_requests"] == 0
    assert handle_of(cluster._models).methods == ["info"]
    assert handle_of(cluster._routers).methods == ["traffic"]


async def test_an_unreachable_replica_is_listed_by_the_name_it_had(cluster: ClusterReport) -> None:
    await cluster.report()
    models = handle_of(cluster._models)
    models.outcomes = [{"replica": "m2"}, None]
    for _ in range(2):  # it stays known for as long as it is unreachable
        report = await cluster.report()
        unreachable, well = report["models"]
        assert (unreachable["replica"], unreachable["problem"]) == ("m1", "no_answer")
        assert "within 0.2 s" in unreachable["message"]
        assert well == {"replica": "m2"}
    models.outcomes = [{"replica": "m2"}]
    assert (await cluster.report())["models"] == [{"replica": "m2"}]


async def test_an_unreachable_replica_that_never_spoke_has_no_name(cluster: ClusterReport) -> None:
    handle_of(cluster._models).outcomes = [{"replica": "m1"}, None]
    report = await cluster.report()
    assert [model["replica"] for model in report["models"]] == ["m1", None]


async def test_a_replica_that_raises_is_listed_without_the_text(cluster: ClusterReport) -> None:
    handle_of(cluster._models).outcomes = [{"replica": "m1"}, RuntimeError("my zebrafish hurts")]
    report = await cluster.report()
    assert report["models"][1]["problem"] == "failed"
    assert report["models"][1]["message"] == "RuntimeError"
    assert "zebrafish" not in str(report)


async def test_before_any_replica_runs(cluster: ClusterReport) -> None:
    handle_of(cluster._models).outcomes = None
    report = await cluster.report()
    assert [model["problem"] for model in report["models"]] == ["not_running"]
    assert [router["replica"] for router in report["routers"]] == ["r1"]


def test_an_unreachable_router_is_left_out_of_the_sum() -> None:
    unreachable = {"replica": None, "problem": "no_answer", "message": "no answer within 2 s"}
    report = assemble([], [unreachable, traffic_of("r1")], generated_at=1.0)
    assert [router["replica"] for router in report["routers"]] == ["r1", None]
    assert report["routers"][1] == unreachable
    assert report["all_routers"]["num_requests"] == 0


async def test_the_api_hands_it_on(client: httpx.AsyncClient, backend: SmallBackend) -> None:
    response = await client.get("/v1/operator")
    assert response.json() == await backend.operator_report()
