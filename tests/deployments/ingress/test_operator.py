"""A silent or broken replica is listed, and hides nobody else's answer."""

import asyncio
from typing import Any

import httpx
import pytest

from deployments.ingress import operator
from deployments.ingress.operator import ClusterReport, TrafficLog, assemble
from tests.deployments.conftest import SmallBackend


class Pending:
    """One replica's answer: a value, an exception, or (None) none at all."""

    def __init__(self, outcome: Any) -> None:
        self._outcome = outcome
        self.is_cancelled = False

    async def get_async(self) -> Any:
        if self._outcome is None:
            await asyncio.Event().wait()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """A deployment handle whose broadcast reaches these replicas; None: none is known yet."""

    def __init__(self, outcomes: list[Any] | None) -> None:
        self.outcomes = outcomes
        self.pending: list[Pending] = []
        self.methods: list[str] = []

    def broadcast(self, method: str) -> "Handle":
        self.methods.append(method)
        return self

    async def _fetch_replica_results_async(self) -> list[Pending]:
        if self.outcomes is None:
            await asyncio.Event().wait()
        self.pending = [Pending(outcome) for outcome in self.outcomes or []]
        return self.pending


def traffic_of(replica: str) -> dict[str, Any]:
    return {"replica": replica, "catalog_revision": 7, "snapshot": TrafficLog().snapshot()}


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> ClusterReport:
    """Two model replicas, one router replica; 0.2 s of patience."""
    monkeypatch.setattr(operator, "REPLICA_TIMEOUT_S", 0.2)
    models = Handle([{"replica": "m2"}, {"replica": "m1"}])
    desk = ClusterReport(models)  # type: ignore[arg-type]
    desk._routers = operator._ReplicaSet(Handle([traffic_of("r1")]))  # type: ignore[arg-type]
    return desk


def handle_of(roll: Any) -> Handle:
    handle: Handle = roll._handle
    return handle


async def test_every_replica_is_asked(desk: ClusterReport) -> None:
    report = await desk.report()
    assert [model["replica"] for model in report["models"]] == ["m1", "m2"]
    assert [router["replica"] for router in report["routers"]] == ["r1"]
    assert report["routers"][0]["catalog_revision"] == 7
    assert report["all_routers"]["num_requests"] == 0
    assert handle_of(desk._models).methods == ["info"]
    assert handle_of(desk._routers).methods == ["traffic"]


async def test_a_silent_replica_is_listed_by_the_name_it_had(desk: ClusterReport) -> None:
    await desk.report()
    models = handle_of(desk._models)
    models.outcomes = [{"replica": "m2"}, None]
    for _ in range(2):  # it stays known for as long as it is silent
        report = await desk.report()
        silent, well = report["models"]
        assert (silent["replica"], silent["problem"]) == ("m1", "no_answer")
        assert "within 0.2 s" in silent["message"]
        assert well == {"replica": "m2"}
        assert models.pending[1].is_cancelled
    models.outcomes = [{"replica": "m2"}]
    assert (await desk.report())["models"] == [{"replica": "m2"}]


async def test_a_silent_replica_that_never_spoke_has_no_name(desk: ClusterReport) -> None:
    handle_of(desk._models).outcomes = [{"replica": "m1"}, None]
    report = await desk.report()
    assert [model["replica"] for model in report["models"]] == ["m1", None]


async def test_a_replica_that_raises_is_listed_without_the_text(desk: ClusterReport) -> None:
    handle_of(desk._models).outcomes = [{"replica": "m1"}, RuntimeError("my zebrafish hurts")]
    report = await desk.report()
    assert report["models"][1]["problem"] == "failed"
    assert report["models"][1]["message"] == "RuntimeError"
    assert "zebrafish" not in str(report)


async def test_before_any_replica_runs(desk: ClusterReport) -> None:
    handle_of(desk._models).outcomes = None
    report = await desk.report()
    assert [model["problem"] for model in report["models"]] == ["not_running"]
    assert [router["replica"] for router in report["routers"]] == ["r1"]


def test_a_silent_router_is_left_out_of_the_sum() -> None:
    silent = {"replica": None, "problem": "no_answer", "message": "no answer within 2 s"}
    report = assemble([], [silent, traffic_of("r1")], generated_at=1.0)
    assert [router["replica"] for router in report["routers"]] == ["r1", None]
    assert report["routers"][1] == silent
    assert report["all_routers"]["num_requests"] == 0


async def test_the_api_hands_it_on(client: httpx.AsyncClient, backend: SmallBackend) -> None:
    response = await client.get("/v1/operator")
    assert response.json() == await backend.operator_report()
