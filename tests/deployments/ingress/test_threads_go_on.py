"""The threads that follow something outlive whatever one look raises."""

import threading
from typing import Any

import pytest

from deployments.ingress.model_watch import ModelWatch
from deployments.model.adapter_follower import AdapterFollower
from tests.deployments.ingress.test_model_watch import OURS, Replicas
from tests.deployments.test_hung_state import until

ERRORS = [ValueError("a reply"), KeyError("replica"), OSError(24, "Too many open files")]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_the_watch_of_the_model_replicas(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.ingress.model_watch.PERIOD_S", 0.01)
    replicas = Replicas()
    replicas.answers = error
    watch = ModelWatch(replicas, "b", "router")
    watch.start()
    until(lambda: len(replicas.asked) > 2)
    assert watch.readiness() == (None, f"no model replica answers: {type(error).__name__}")
    replicas.answers = [OURS]
    until(lambda: watch.readiness()[0] is not None)
    watch.stop()


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_the_watch_where_a_reader_of_reports_fails(error: Exception) -> None:
    replicas = Replicas(OURS)
    watch = ModelWatch(replicas, "b", "router")
    seen = threading.Event()

    def on_reports(reports: Any) -> None:
        if len(replicas.asked) == 1:
            raise error
        seen.set()

    watch.on_reports = on_reports
    watch.start()
    watch.look_soon()
    assert seen.wait(5)
    watch.stop()


@pytest.mark.parametrize("error", [*ERRORS, RuntimeError("can't start new thread")], ids=repr)
def test_the_follower_of_the_adapters(error: Exception) -> None:
    class Manager:
        num_looks = 0

        def is_behind(self) -> bool:
            self.num_looks += 1
            return self.num_looks > 1

        def try_sync(self) -> None:
            if self.num_looks == 2:
                raise error
            synced.set()

        def prefetch(self) -> None:
            if self.num_looks == 1:
                raise error

    synced = threading.Event()
    follower = AdapterFollower(Manager(), lambda: 0.01)  # type: ignore[arg-type]
    assert synced.wait(5)
    follower.stop()
