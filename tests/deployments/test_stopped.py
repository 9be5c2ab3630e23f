"""Processes of Serve that somebody has stopped are killed after a while."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from deployments.stopped import STOPPED_S, StoppedProcesses


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield psutil.Process(child.pid)
    child.kill()
    child.wait()


def stop(process: psutil.Process) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)


def looked(watch: StoppedProcesses, times: dict[str, float], process: psutil.Process) -> list[int]:
    """Look every second for STOPPED_S; return the seconds at which it was killed."""
    killed = []
    for second in range(round(STOPPED_S) + 1):
        times["now"] += 1
        if watch.end([process]):
            killed.append(second)
    return killed


def test_one_that_is_stopped_is_killed_after_its_time_and_one_that_runs_is_not(
    sleeper: psutil.Process,
) -> None:
    times = {"now": 0.0}
    watch = StoppedProcesses(lambda: times["now"])
    assert looked(watch, times, sleeper) == []
    stop(sleeper)
    assert looked(watch, times, sleeper) == [round(STOPPED_S)]
    assert sleeper.wait(5) is not None


def test_one_that_goes_on_in_between_begins_anew(sleeper: psutil.Process) -> None:
    times = {"now": 0.0}
    watch = StoppedProcesses(lambda: times["now"])
    for _ in range(3):
        stop(sleeper)
        times["now"] += 1
        assert watch.end([sleeper]) == []
        times["now"] += STOPPED_S / 4
        os.kill(sleeper.pid, signal.SIGCONT)
        while sleeper.status() == psutil.STATUS_STOPPED:
            time.sleep(0.001)
        assert watch.end([sleeper]) == []
    assert sleeper.is_running()


def test_a_watch_that_stood_still_itself_does_not_count_that_time(sleeper: psutil.Process) -> None:
    times = {"now": 0.0}
    watch = StoppedProcesses(lambda: times["now"])
    stop(sleeper)
    times["now"] += 1
    assert watch.end([sleeper]) == []
    times["now"] += 10 * STOPPED_S  # a paused container, a machine that slept
    assert watch.end([sleeper]) == []
    assert looked(watch, times, sleeper) == [round(STOPPED_S) - 1]


def test_one_that_has_ended_is_nobodys_business(sleeper: psutil.Process) -> None:
    sleeper.kill()
    sleeper.wait()
    assert StoppedProcesses().end([sleeper]) == []


PARENT = """
import socket, subprocess, sys, time
pairs = [socket.socketpair() for _ in range(2)]
ends = [pair[1].fileno() for pair in pairs]
code = (
    "import sys, deployments.stopped as stopped\\n"
    "stopped.STOPPED_S = 1.0\\n"
    "from deployments.engine_process.main import main\\n"
    "main(*map(int, sys.argv[1:]))"
)
child = subprocess.Popen([sys.executable, "-c", code, *map(str, ends)], pass_fds=ends)
for pair in pairs:
    pair[1].close()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_the_engines_process_ends_a_replica_that_is_stopped_and_itself() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    try:
        os.kill(parent.pid, signal.SIGSTOP)
        assert parent.wait(25) == -signal.SIGKILL
        engine.wait(10)
    finally:
        parent.kill()
        parent.stdout.close()
        if engine.is_running():
            engine.kill()
