"""The loop over a decoder whose answers are a function of what was said: guesses change nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engine.core import EngineLimits
from deployments.engine.decoder import DecoderInfo
from deployments.engine.engine import Engine
from deployments.engine.request import NO_DRAFTS, Request, SamplingParams, SchedulerOutput
from deployments.engine.scheduling import scheduler
from tests.deployments.engine.prefix_runs import Driver
from tests.deployments.engine.test_step_engine import EOS, ScriptedStepDecoder, _Ready

PERIOD = 7  # answers repeat themselves, but for every 11th token


def said(ids: Sequence[int]) -> int:
    """The token that follows; sometimes the end."""
    length = len(ids)
    if length % 11 == 0:
        return 40 + length % 5 if ids[0] % 2 or length < 33 else EOS
    return ids[-PERIOD] if length >= PERIOD else 30 + length


class Speaker(ScriptedStepDecoder):
    """Fails if a row is decoded beyond what its request may need."""

    can_try_drafts = True
    drafted_rows, draft_tokens = 2, 8

    def __init__(self, ahead: int = 0) -> None:
        super().__init__()
        self.capacities = (200,) * 4
        self.num_steps_ahead = ahead
        self.said: dict[int, list[int]] = {}
        self.limits: dict[int, int] = {}
        self.num_steps = 0
        self.num_right = 0
        self.num_guessed = 0

    @property
    def info(self) -> DecoderInfo:
        eos = frozenset({EOS})
        return DecoderInfo("scripted", "test", "cpu", "none", 200, eos, self.adapters)

    def step(self, plan: SchedulerOutput) -> _Ready:
        self.num_steps += 1
        for chunk in plan.prefill:
            if chunk.is_last:
                request = chunk.request
                self.said[chunk.row] = list(request.prompt_ids)
                self.limits[chunk.row] = len(request.prompt_ids) + request.sampling.max_tokens
        rows = [*(c.row for c in plan.prefill if c.is_last), *plan.decode]
        return _Ready({row: self._next(row) for row in rows})

    def step_drafts(self, lines: Mapping[int, Sequence[int]]) -> Mapping[int, list[int]]:
        self.num_steps += 1
        found: dict[int, list[int]] = {}
        for row, (newest, *guessed) in lines.items():
            assert newest == self.said[row][-1], "a step before it was not waited for"
            guesses = [*guessed, None]
            assert len(self.said[row]) + len(guesses) <= self.limits[row], "beyond its row"
            found[row] = []
            for guess in guesses:
                found[row].append(self._next(row))
                if found[row][-1] != guess:
                    break
            self.num_right += len(found[row]) - 1
            self.num_guessed += len(guessed)
        return found

    def _next(self, row: int) -> int:
        self.said[row].append(said(self.said[row]))
        return self.said[row][-1]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 90), st.integers(0, 40)),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 1),
    st.sampled_from([None, 1.3]),
)
def test_answers_are_the_same(
    shapes: list[tuple[int, int, int]], ahead: int, slowdown: float | None
) -> None:
    """Beside prompts that are read piece by piece, too."""
    requests = [
        Request("r", tuple(range(1, length + 1)), None, SamplingParams(tokens))
        for length, tokens, _ in shapes
    ]
    arrivals = [arrival for _, _, arrival in shapes]
    sides = []
    for tries in (False, True):
        driver = Driver(
            Speaker(ahead),
            reuses_prefixes=False,
            tries_drafts=tries,
            long_prompt_slowdown=slowdown,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheduler, "LONG_PROMPT", 12)
            patch.setattr(scheduler, "PIECE", 8)
            found = driver.run(requests, arrivals=arrivals)
            driver.loop._scheduler.check_invariants()
        sides.append((found.tokens, found.num_ended))
    assert sides[0] == sides[1]
    assert sides[0][1] == len(requests)


@pytest.mark.parametrize("ahead", [0, 1])
def test_repeated_text_takes_fewer_steps(ahead: int) -> None:
    decoder = Speaker(ahead)
    request = Request("r", tuple(range(1, 11)), None, SamplingParams(120))
    found = Driver(decoder, reuses_prefixes=False, tries_drafts=True).run([request])
    assert len(found.tokens[0]) == 120
    assert decoder.num_right + decoder.num_steps == 120
    assert decoder.num_steps < 90


async def test_what_was_guessed_is_counted_in_the_last_event() -> None:
    decoder = Speaker()
    engine = Engine.on_thread(decoder, EngineLimits(4, 4, 100, tries_drafts=True))
    try:
        request = Request("r", tuple(range(1, 11)), None, SamplingParams(120))
        events = [event async for event in engine.generate(request)]
    finally:
        engine.close()
    last = events.pop().drafts
    assert last.num_accepted == decoder.num_right > 0
    assert last.num_guessed == decoder.num_guessed > last.num_accepted
    assert {event.drafts for event in events} <= {NO_DRAFTS}


def test_text_without_repetition_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step but the last is launched before the one before it is delivered."""
    monkeypatch.setattr("tests.deployments.engine.test_draft_loop.said", lambda ids: len(ids) + 50)
    decoder, order = Speaker(ahead=1), []
    driver = Driver(decoder, reuses_prefixes=False, tries_drafts=True)
    step, deliver = decoder.step, driver.loop._deliver

    def launched(plan: SchedulerOutput) -> _Ready:
        order.append("step")
        return step(plan)

    def delivered(*args: Any) -> None:
        order.append("deliver")
        deliver(*args)

    monkeypatch.setattr(decoder, "step", launched)
    monkeypatch.setattr(driver.loop, "_deliver", delivered)
    driver.run([Request("r", (1, 2, 3, 4), None, SamplingParams(20))])
    assert order == ["step", *["step", "deliver"] * 19, "deliver"]


class Broken(Speaker):
    """Fails in its first step with guesses."""

    def step_drafts(self, lines: Mapping[int, Sequence[int]]) -> Mapping[int, list[int]]:
        raise RuntimeError("planted")


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_failed_step_with_guesses_ends_its_answers(ahead: int) -> None:
    decoder = Broken(ahead)
    driver = Driver(decoder, reuses_prefixes=False, tries_drafts=True)
    request = Request("r", tuple(range(1, 11)), None, SamplingParams(120))
    found = driver.run([request, request])
    assert found.num_ended == 2
    assert driver.loop.num_failures_in_a_row == 1
    driver.loop._scheduler.check_invariants()
    assert not driver.loop._drafts._lookups, "what was read of an ended answer is kept"
