"""Counters that no longer matter are forgotten, and forgetting changes no decision."""

import random

import pytest

from deployments.engine.request import Request, SamplingParams, SequenceState
from deployments.engine.scheduling import fairness
from deployments.engine.scheduling.fairness import TokenCounters
from deployments.engine.scheduling.scheduler import Scheduler

Step = tuple[list[tuple[int, int, int]], bool]  # arrivals: adapter, prompt, tokens; end one?


def run(steps: list[Step]) -> list[tuple[tuple[str | None, int | None], ...]]:
    """The adapter and the row of everything that is admitted, by step."""
    scheduler = Scheduler((32, 32), prefill_tokens=16, can_split_prompts=True)
    admitted = []
    for now, (arrivals, ends_one) in enumerate(steps):
        for adapter, prompt, tokens in arrivals:
            request = Request("r", (1,) * prompt, f"a{adapter}", SamplingParams(tokens))
            scheduler.add(request, now)
        scheduled = scheduler.schedule(now)
        admitted.append(tuple((s.request.adapter, s.row) for s in scheduled.admitted))
        ended: list[SequenceState] = [s for s in scheduled.emits if s.is_fully_scheduled]
        for sequence in ended:
            scheduler.finish(sequence)
        if ends_one and scheduler.sequences:
            scheduler.finish(scheduler.sequences[0])
        scheduler.check_invariants()
    return admitted


def random_steps(seed: int) -> list[Step]:
    """Rushes and pauses, so that adapters come back below, at and above the floor."""
    rng = random.Random(seed)
    steps: list[Step] = []
    for _ in range(120):
        arrivals = [
            (rng.randrange(6), rng.randint(1, 12), rng.randint(1, 6))
            for _ in range(rng.choice([0, 0, 0, 0, 1, 1, 4]))
        ]
        steps.append((arrivals, rng.random() < 0.05))
    return steps


@pytest.mark.parametrize("seed", range(60))
def test_forgetting_changes_no_decision(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = random_steps(seed)
    kept = run(steps)
    monkeypatch.setattr(TokenCounters, "should_forget", True)  # at every arrival
    assert run(steps) == kept


def test_adapters_that_come_and_go_leave_no_counter_behind() -> None:
    scheduler = Scheduler((32,), prefill_tokens=16, can_split_prompts=True)
    for number in range(10_000):
        request = Request("r", (1,) * 4, f"derm@{number}", SamplingParams(2))
        sequence = scheduler.add(request, 0.0)
        while not sequence.is_fully_scheduled:
            scheduler.schedule(0.0)
        scheduler.finish(sequence)
    assert len(scheduler._counters._served) <= 2 * fairness._KEPT
