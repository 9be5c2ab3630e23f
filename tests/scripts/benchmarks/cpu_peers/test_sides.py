"""What the machine's counters say of a block, and a turn that waits for a calm one."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.startup.processes import ProcessTree
from scripts.benchmarks.cpu_peers import in_torch
from scripts.benchmarks.cpu_peers.pairs import Calm
from scripts.benchmarks.cpu_peers.sides import Sides, lost_shares


def counters(**seconds: float) -> Any:
    names = "user nice system idle iowait irq softirq steal guest guest_nice".split()
    values = SimpleNamespace(**(dict.fromkeys(names, 100.0) | seconds))
    values._fields = names
    return values


@pytest.mark.parametrize(
    ("after", "taken_s", "shares"),
    [
        ({"user": 104.0, "idle": 106.0}, 4.0, (0.0, 0.0)),
        ({"user": 104.0, "idle": 106.0}, 3.0, (0.0, 0.1)),
        ({"user": 104.0, "idle": 106.0}, 4.1, (0.0, 0.0)),  # clocks of another grain
        ({"nice": 102.0, "softirq": 101.0, "idle": 107.0}, 1.0, (0.0, 0.2)),
        ({"user": 104.0, "steal": 102.0, "iowait": 104.0}, 4.0, (0.2, 0.0)),
        # Time of guests is counted in user already.
        ({"user": 104.0, "guest": 104.0, "idle": 106.0}, 4.0, (0.0, 0.0)),
    ],
)
def test_time_that_neither_side_took_is_lost(
    after: dict[str, float], taken_s: float, shares: tuple[float, float]
) -> None:
    assert lost_shares(counters(), counters(**after), taken_s) == pytest.approx(shares)


def test_a_turn_waits_for_a_calm_machine_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = [5.4, 4.6, 3.7]
    monkeypatch.setattr(in_torch, "probe", lambda: (20.0, 5.0, waits.pop(0)))
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with ThreadPoolExecutor(1) as torch:
        sides = Sides(torch, torch, ProcessTree(os.getpid()), {})  # type: ignore[arg-type]
        asyncio.run(sides.calm(Calm(3.6), 20.0))
        assert (waits, slept) == ([], [1.0, 1.0])
        waits.append(9.9)
        asyncio.run(sides.calm(Calm(3.6), 0.0))
        assert waits == [9.9]
