"""What a router knows of the model replicas: heartbeats, other versions, none at all."""

import threading
import time
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from deployments.ingress.model_watch import LOOK_TIMEOUT_S, STALE_S, ModelWatch

OURS = {"config": "b", "replica": "m1"}
OTHERS = {"config": "a", "replica": "m0"}
GONE = DeploymentUnavailableError("Model")  # type: ignore[arg-type]


class Replicas:
    def __init__(self, *answers: Any) -> None:
        self.answers: Any = list(answers)
        self.asked: list[tuple[str, float, tuple[Any, ...]]] = []

    def ask(self, method: str, timeout_s: float, *args: Any) -> list[Any]:
        self.asked.append((method, timeout_s, args))
        if isinstance(self.answers, Exception):
            raise self.answers
        return list(self.answers)

    is_well = True

    def is_healthy(self) -> bool:
        return self.is_well


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("answers", "is_served", "cause"),
    [
        ([OURS], True, None),
        ([OURS, OTHERS], True, None),
        ([OURS, TimeoutError()], True, None),
        ([OTHERS], False, "another configuration"),
        ([OTHERS, TimeoutError()], False, "another configuration"),
        (GONE, False, "no model replica is running"),
        ([ActorDiedError()], False, "no model replica is running"),
        ([ActorDiedError(), ActorDiedError()], False, "no model replica is running"),
        ([ActorDiedError(), TimeoutError()], True, "no model replica answers: ActorDiedError"),
        ([TimeoutError()], True, "no model replica answers: TimeoutError"),
        ([ActorUnavailableError("blip", None)], True, "no model replica answers"),
        (TimeoutError(), True, "no model replica answers: TimeoutError"),
        (RayServeException("controller"), True, "no model replica answers: RayServeException"),
    ],
)
def test_what_a_look_means(answers: Any, is_served: bool, cause: str | None) -> None:
    replicas = Replicas()
    replicas.answers = answers
    watch = ModelWatch(replicas, "b", "router-1")
    watch.look()
    report, why = watch.readiness()
    assert (report == OURS) is (cause is None)
    assert why is None if cause is None else cause in (why or "")
    replicas.answers = [OURS]
    watch.look()
    replicas.answers = answers
    watch.look()
    assert watch.is_served is is_served


def test_until_a_first_replica_was_heard_serve_may_know_better() -> None:
    """Serve calls the application ready, and the next look is still to come."""
    replicas = Replicas()
    replicas.answers = GONE
    watch = ModelWatch(replicas, "b", "router-1")
    watch.look()
    assert watch.is_served
    assert watch.readiness() == (None, "no model replica is running")
    replicas.answers = [OURS]
    watch.look()
    replicas.answers = GONE
    watch.look()
    assert not watch.is_served


def test_before_the_first_look_serve_may_know_better() -> None:
    watch = ModelWatch(Replicas(OURS), "b", "router-1")
    assert watch.is_served
    assert watch.readiness()[0] is None
    assert watch.num_replicas == 1


def test_each_look_tells_who_asks_and_when() -> None:
    replicas = Replicas(OURS)
    ModelWatch(replicas, "b", "router-1").look()
    [(method, timeout_s, (sender, sent_at))] = replicas.asked
    assert (method, timeout_s, sender) == ("info", LOOK_TIMEOUT_S, "router-1")
    assert abs(sent_at - time.time()) < 5


def test_a_replica_that_was_heard_counts_until_it_is_silent_for_too_long() -> None:
    clock, replicas = Clock(), Replicas(OURS, OURS)
    watch = ModelWatch(replicas, "b", "router-1", clock=clock)
    watch.look()
    replicas.answers = [TimeoutError(), TimeoutError()]
    clock.now += STALE_S
    watch.look()
    assert watch.readiness() == (OURS, None)
    assert watch.num_replicas == 2
    clock.now += 0.1
    assert "no model replica answers" in (watch.readiness()[1] or "")


def test_a_new_version_waits_only_while_it_has_never_seen_its_own_models() -> None:
    replicas = Replicas(OTHERS)
    watch = ModelWatch(replicas, "b", "router-1")
    assert watch.is_early, "nothing is known yet"
    replicas.answers, others = GONE, replicas.answers
    watch.look()
    assert not watch.is_early, "at a first start there is nobody"
    assert not watch.is_awaited
    replicas.answers = others
    watch.look()
    assert watch.is_early
    assert watch.is_awaited
    replicas.answers = GONE  # the old model had to go before the new one could be loaded
    watch.look()
    assert watch.is_awaited
    assert watch.is_served
    replicas.answers = [OTHERS, OURS]
    watch.look()
    assert not watch.is_early
    replicas.answers = [OTHERS]  # now it is the old one
    watch.look()
    assert not watch.is_early
    assert not watch.is_awaited
    assert not watch.is_served


def test_calls_do_not_wait_for_a_new_version_that_they_have_to_wake() -> None:
    replicas = Replicas(OTHERS)
    watch = ModelWatch(replicas, "b", "router-1", may_sleep=True)
    watch.look()
    assert watch.is_awaited
    replicas.answers = GONE
    watch.look()
    assert not watch.is_awaited
    assert watch.is_served


def test_it_looks_by_itself_and_again_when_told_to() -> None:
    replicas, empty = Replicas(), threading.Event()
    replicas.answers = GONE
    watch = ModelWatch(replicas, "b", "router-1")
    watch.on_empty = lambda began: empty.set()
    watch.start()
    assert empty.wait(5)
    num_asked = len(replicas.asked)
    replicas.answers = [OURS]
    deadline = time.monotonic() + 5
    while watch.readiness()[0] is None and time.monotonic() < deadline:
        watch.look_soon()
        time.sleep(0.01)
    watch.stop()
    assert watch.readiness() == (OURS, None)
    assert len(replicas.asked) > num_asked


def test_none_is_kept_when_idle_and_questions_are_let_in_while_it_sleeps() -> None:
    replicas, ended = Replicas(OURS), []
    watch = ModelWatch(replicas, "b", "router-1", may_sleep=True)
    watch.on_empty = lambda: ended.append(1)
    watch.look()
    assert watch.readiness() == (OURS, None)
    replicas.answers = GONE
    watch.look()
    assert watch.is_served
    assert watch.readiness() == ({**OURS, "asleep": True}, None)
    assert not ended


def test_before_the_first_replica_has_started_nobody_sleeps() -> None:
    replicas = Replicas()
    replicas.answers, replicas.is_well = GONE, False
    watch = ModelWatch(replicas, "b", "router-1", may_sleep=True)
    ended: list[float] = []
    watch.on_empty = ended.append
    watch.look()
    assert ended, "what waited for a whole look is refused"
    assert watch.readiness() == (None, "no model replica is running")
    replicas.is_well = True  # a new router, while the model sleeps
    watch.look()
    assert len(ended) == 1
    assert watch.is_served
    assert watch.readiness() == ({"asleep": True}, None)
    replicas.is_well = False  # the first question wakes it: Serve's state is "upscaling" meanwhile
    watch.look()
    assert len(ended) == 1, "the question that wakes it is refused"
    assert watch.readiness() == ({"asleep": True}, None)
