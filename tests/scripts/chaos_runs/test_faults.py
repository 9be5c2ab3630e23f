"""What a fault breaks is mended, also where the run ends in the middle of it."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scripts.chaos_runs import faults
from scripts.chaos_runs.faults import Breaker

# A process that calls itself what Ray calls a model replica.
NAMED = "import time; time.sleep(60)"


@pytest.fixture
def victim() -> Iterator[psutil.Process]:
    command = ["ray::ServeReplica:clinic:Model", "-c", NAMED]
    child = subprocess.Popen(command, executable=sys.executable)
    process = psutil.Process(child.pid)
    while process.cmdline()[:1] != command[:1]:  # it has not begun yet
        time.sleep(0.01)
    yield process
    child.kill()
    child.wait()


class Tree:
    def __init__(self, *processes: psutil.Process) -> None:
        self.processes = list(processes)

    def alive(self) -> list[int]:
        return [p.pid for p in self.processes if p.status() != psutil.STATUS_ZOMBIE]


def breaker(tree: Any, state: Path) -> Breaker:
    return Breaker(tree, {}, "http://127.0.0.1:9", state, random.Random(0))


async def ended_in_the_middle(breaking: Breaker, fault: str) -> None:
    task = asyncio.create_task(breaking.run(fault))
    await asyncio.sleep(0.3)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_replica_that_stands_still_goes_on(victim: psutil.Process, tmp_path: Path) -> None:
    breaking = breaker(Tree(victim), tmp_path)
    assert breaking.pids("model") == [victim.pid]
    task = asyncio.create_task(breaking.run("hang"))
    await until(lambda: victim.status() == psutil.STATUS_STOPPED)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: victim.status() != psutil.STATUS_STOPPED)


async def test_the_state_comes_back(victim: psutil.Process, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "catalog.yaml").write_text("x")
    await ended_in_the_middle(breaker(Tree(victim), state), "state")
    assert (state / "catalog.yaml").read_text() == "x"


async def test_one_that_is_stopped_for_good_is_killed_where_nobody_else_does(
    victim: psutil.Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_REPLACED_S", 0.5)
    said = await breaker(Tree(victim), tmp_path).run("freeze")
    assert said == f"failed: model {victim.pid}: gone None, another None (s)"
    await until(lambda: victim.status() == psutil.STATUS_ZOMBIE)


async def test_a_replacement_is_timed(victim: psutil.Process, tmp_path: Path) -> None:
    tree = Tree(victim)
    task = asyncio.create_task(breaker(tree, tmp_path).run("freeze"))
    await until(lambda: victim.status() == psutil.STATUS_STOPPED)
    os.kill(victim.pid, 9)  # as the engine's process does
    command = ["ray::ServeReplica:clinic:Model", "-c", NAMED]
    with subprocess.Popen(command, executable=sys.executable) as another:
        tree.processes.append(psutil.Process(another.pid))
        said = await asyncio.wait_for(task, 10)
        another.kill()
    assert said.startswith(f"model {victim.pid} was stopped, gone 0.")


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
