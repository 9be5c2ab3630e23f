"""When the launcher gives a service up: silence, a long not-ready, a daemon that has ended."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from deployments.startup.processes import ProcessTree
from deployments.startup.status import Probe
from deployments.startup.supervision import _wait_until_it_ends
from deployments.startup.watch import PERIOD_S, Patience, ServiceWatch

READY = Probe(True, True)
NOT_READY = Probe(True, False, "no model replica is running")
SILENT = Probe(False, False, "timed out")
BARE = Probe(False, False, "status 500")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(probes: list[Probe], seconds: float) -> tuple[str | None, float]:
    """Look every second with these answers, the last for ever; returns (cause, when)."""
    clock, left = Clock(), list(probes)
    watch = ServiceWatch(
        lambda: left.pop(0) if len(left) > 1 else left[0], [], Patience(30, 600), clock
    )
    while clock.now < seconds:
        clock.now += 1
        loss = watch.look()
        if loss:
            return loss.cause, clock.now
    return None, clock.now


@pytest.mark.parametrize("probe", [SILENT, BARE])
def test_silence_is_given_half_a_minute(probe: Probe) -> None:
    cause, when = watched([READY, probe], 100)
    assert cause is not None
    assert probe.cause in cause
    assert 30 < when <= 30 + 2 * PERIOD_S + 1


def test_a_service_that_says_it_is_not_ready_is_left_to_serve_for_longer() -> None:
    assert watched([READY, NOT_READY], 590)[0] is None
    cause, when = watched([READY, NOT_READY], 700)
    assert cause is not None
    assert "no model replica is running" in cause
    assert 600 < when < 610


def test_an_answer_in_between_starts_the_time_again() -> None:
    probes = [READY, *[SILENT] * 9, READY, *[SILENT] * 9, NOT_READY, *[SILENT] * 9, READY]
    assert watched(probes, 200)[0] is None


def test_a_daemon_that_has_ended_is_named_at_once() -> None:
    daemon = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = psutil.Process(daemon.pid)
    watch = ServiceWatch(lambda: READY, [process], Patience())
    assert watch.look() is None
    daemon.kill()
    psutil.wait_procs([process], timeout=5)
    loss = watch.look()
    assert loss is not None
    assert f"(pid {daemon.pid}) has ended" in loss.cause
    assert not loss.can_drain


def test_a_daemon_that_is_stopped_is_killed_and_the_service_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its sockets stay open and /readyz is answered, while nothing can be started any more."""
    monkeypatch.setattr("deployments.stopped.STOPPED_S", 0.2)
    monkeypatch.setattr("deployments.startup.supervision.POLL_S", 0.05)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep) as serve, subprocess.Popen(sleep) as daemon:
        watch = ServiceWatch(lambda: READY, [psutil.Process(daemon.pid)], Patience(30, 600))
        said: list[str] = []
        try:
            os.kill(daemon.pid, signal.SIGSTOP)
            tree = ProcessTree(serve.pid)
            loss = _wait_until_it_ends(serve, tree, watch, said.append)
            assert f"(pid {daemon.pid}) has ended" in loss.cause
            assert any(f"pid {daemon.pid} was stopped" in line for line in said)
        finally:
            serve.kill()
            daemon.kill()
