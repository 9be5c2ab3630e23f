"""Turns are made until they are enough or the time is over; those that were disturbed again."""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks.cpu_peers import command, llama_cpp
from scripts.benchmarks.cpu_peers.pairs import MIN_TURNS, Block, Calm, Condition, comparisons

COMPARED = comparisons([1, 16])
PROBE = (20.0, 5.0, 1.0)


class Machine:
    """Measures nothing; `stolen` of each block in turn, then none."""

    def __init__(self, stolen: list[float] | None = None, seconds: float = 0.0) -> None:
        self._stolen = stolen or []
        self._seconds = seconds
        self.blocks = 0

    async def calm(self, wanted: Calm, limit_s: float) -> None:
        pass

    async def turn(self, conditions: Sequence[Condition]) -> list[Block]:
        return [await self._block(condition) for condition in conditions]

    async def _block(self, condition: Condition) -> Block:
        self.blocks += 1
        await asyncio.sleep(self._seconds)
        stolen = self._stolen.pop(0) if self._stolen else 0.0
        return Block(condition, 10.0 * condition.streams, None, stolen, 0.0, 0.0, (PROBE, PROBE))


def made(machine: Any, seconds: float = 60.0) -> command.Turns:
    until = time.monotonic() + seconds
    return asyncio.run(command._turns(machine, COMPARED, until, 0.01))


def test_turns_end_where_every_interval_is_narrow() -> None:
    turns = made(Machine())
    assert [len(each) for each in turns.values()] == [MIN_TURNS] * len(COMPARED)


def test_for_a_disturbed_turn_another_is_made() -> None:
    turns = made(Machine([0.0, 0.5]))
    assert sorted(len(each) for each in turns.values())[-2:] == [MIN_TURNS, MIN_TURNS + 1]
    (again,) = (each for each in turns.values() if len(each) > MIN_TURNS)
    assert [any(block.is_disturbed(1.0) for block in turn) for turn in again[:2]] == [True, False]


def test_a_machine_that_is_always_disturbed_ends_in_time_without_ratios() -> None:
    turns = made(Machine([0.5] * 10**5, seconds=0.001), 0.3)
    found = command._figures(turns)
    assert all("ratio" not in each for each in found["ratios"].values())
    assert found["summary"] == {}
    assert found["machine"]["blocks"] == found["machine"]["disturbed"] > 0


def test_no_turn_begins_that_would_end_too_late() -> None:
    machine = Machine(seconds=0.05)
    began = time.monotonic()
    made(machine, 0.4)
    assert time.monotonic() - began < 0.4 + 0.05
    assert machine.blocks >= 3


def test_every_block_is_written_and_every_figure_is_json(tmp_path: Path) -> None:
    turns = made(Machine([0.0, 0.5]))
    command._write_blocks(turns, tmp_path / "new" / "p.blocks.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "new" / "p.blocks.jsonl").open()]
    assert len(rows) == 3 * sum(len(each) for each in turns.values())
    assert sum(row["disturbed"] for row in rows) == 1
    assert {row["comparison"] for row in rows} == {str(comparison) for comparison in COMPARED}
    found = json.loads(json.dumps(command._figures(turns)))
    assert found["ratios"]["llama.cpp, mixed, 16"]["ratio"] == pytest.approx(1.0)
    assert found["summary"]["PEFT, mixed, 16"]["tokens_per_s"] == 160.0


def test_a_run_too_short_for_a_turn_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measured(*_: object) -> tuple[dict[str, float], command.Turns]:
        return {}, {comparison: [] for comparison in COMPARED}

    monkeypatch.setattr(command, "_measure", measured)
    monkeypatch.setattr(llama_cpp, "check_installed", lambda: None)
    assert command.run(argparse.Namespace(limit_s=5.0), []) == 2
    assert "--limit_s 5: give it more" in capsys.readouterr().err
