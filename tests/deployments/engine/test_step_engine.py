"""The engine over a scripted step decoder: rows join and leave, and every request ends once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from deployments.engine.core import MAX_FAILURES_IN_A_ROW, EngineLimits
from deployments.engine.decoder import DecoderInfo
from deployments.engine.engine import Engine
from deployments.engine.errors import (
    EmptyPrompt,
    EngineError,
    EngineStopped,
    OutputTooLong,
    UnknownAdapter,
)
from deployments.engine.request import (
    FinishReason,
    Request,
    SamplingParams,
    SchedulerOutput,
    TokenScore,
)
from tests.deployments.engine.test_engine import EOS, Turnstile, collect, only_terminal, until

CAPACITIES = (40, 40, 80)


class _Ready:
    def __init__(self, tokens: Mapping[int, int]) -> None:
        self._tokens = tokens
        self.scores: dict[int, list[TokenScore]] = {}
        self.failures: dict[int, EngineError] = {}

    def wait(self) -> Mapping[int, int]:
        return self._tokens


class ScriptedStepDecoder:
    """Each row repeats its prompt, then ends. `gate` pauses each step; `ahead` as on a GPU."""

    can_split_prompts = True
    grammars: Any = None

    def __init__(self, ahead: int = 0) -> None:
        self.num_steps_ahead = ahead
        self.num_prompts_together = 1 + ahead
        self.capacities: tuple[int, ...] = CAPACITIES
        self.adapters = frozenset({"a", "b"})
        self.rows: dict[int, str | None] = {}
        self.prompts: dict[int, tuple[int, ...]] = {}
        self.num_out: dict[int, int] = {}
        self.steps: list[dict[int, str | None]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.most_rows = 0

    @property
    def info(self) -> DecoderInfo:
        eos = frozenset({EOS})
        return DecoderInfo("scripted", "test", "cpu", "none", 80, eos, self.adapters)

    def set_adapter(self, row: int, name: str | None) -> None:
        assert row not in self.rows, f"row {row} is taken"
        self.rows[row] = name
        self.num_out[row] = 0

    def step(self, plan: SchedulerOutput) -> _Ready:
        assert self.gate.wait(timeout=10)
        if self.error is not None:
            raise self.error
        tokens = {}
        for chunk in plan.prefill:
            self.prompts[chunk.row] = chunk.request.prompt_ids
        for row in [*(c.row for c in plan.prefill if c.is_last), *plan.decode]:
            prompt, done = self.prompts[row], self.num_out[row]
            tokens[row] = prompt[done] if done < len(prompt) else EOS
            self.num_out[row] += 1
        self.steps.append({row: self.rows[row] for row in tokens})
        self.most_rows = max(self.most_rows, len(self.rows))
        return _Ready(tokens)

    def free(self, row: int) -> None:
        del self.rows[row], self.num_out[row]

    def reset(self) -> None:
        self.rows, self.num_out = {}, {}

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


def request(
    text: str, adapter: str | None = "a", tokens: int = 32, deadline_s: float | None = None
) -> Request:
    ids = tuple(text.encode())
    return Request(f"r-{text}", ids, adapter, SamplingParams(tokens), deadline_s)


@pytest.fixture(params=[0, 1], ids=["in_step", "one_ahead"])
def decoder(request: pytest.FixtureRequest) -> ScriptedStepDecoder:
    return ScriptedStepDecoder(request.param)


def limits(**more: float) -> EngineLimits:
    return EngineLimits(max_rows=3, max_waiting=50, max_input_tokens=60, prefill_tokens=8, **more)  # type: ignore[arg-type]


def has_stopped(engine: Engine) -> bool:
    try:
        engine.check()
    except EngineStopped:
        return True
    return False


@pytest.fixture
async def engine(decoder: ScriptedStepDecoder) -> AsyncIterator[Engine]:
    engine = Engine.on_thread(decoder, limits())
    yield engine
    decoder.gate.set()
    await until(lambda: engine.num_running == 0 and engine.num_waiting == 0)
    await until(lambda: not decoder.rows or has_stopped(engine))
    engine.close()


async def test_adapters_share_a_batch(engine: Engine, decoder: ScriptedStepDecoder) -> None:
    texts = [f"question {i}" for i in range(12)]
    names = ["a", "b", None]
    answers = await asyncio.gather(
        *(collect(engine.generate(request(t, names[i % 3], 20))) for i, t in enumerate(texts))
    )
    assert ["".join(e.text for e in events) for events in answers] == texts
    assert all(only_terminal(events).finish_reason is FinishReason.STOP for events in answers)
    assert decoder.most_rows == 3
    assert any(len(set(step.values())) == 3 for step in decoder.steps), "never mixed"


async def test_length_ends_a_row_and_frees_it(engine: Engine, decoder: ScriptedStepDecoder) -> None:
    last = only_terminal(await collect(engine.generate(request("hello", tokens=3))))
    assert (last.finish_reason, last.num_tokens) == (FinishReason.LENGTH, 3)
    await until(lambda: not decoder.rows)


async def test_a_cancelled_row_is_freed_within_one_step(
    engine: Engine, decoder: ScriptedStepDecoder
) -> None:
    decoder.gate.clear()
    events = engine.generate(request("a long answer", "b"))
    reading = asyncio.create_task(anext(events))
    await until(lambda: engine.num_running == 1)
    other = asyncio.create_task(collect(engine.generate(request("other"))))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    num_before = len(decoder.steps)
    decoder.gate.set()
    await other
    with_b = [step for step in decoder.steps[num_before:] if "b" in step.values()]
    assert len(with_b) <= 1, "the row ran on"
    assert set(decoder.rows.values()) <= {"a"}


async def test_a_deadline_ends_an_answer_with_what_it_has(decoder: ScriptedStepDecoder) -> None:
    now = [0.0]
    engine = Engine.on_thread(decoder, limits(), clock=lambda: now[0])
    events = engine.generate(request("some words", deadline_s=5.0))
    first = await anext(events)
    now[0] = 5.0
    rest = [event async for event in events]
    last = only_terminal([first, *rest])
    assert last.finish_reason in (FinishReason.TIMEOUT, FinishReason.STOP)
    waiting = request("later", deadline_s=0.0)
    late = only_terminal(await collect(engine.generate(waiting)))
    assert (late.finish_reason, late.num_tokens) == (FinishReason.TIMEOUT, 0)
    await until(lambda: not decoder.rows)
    engine.close()


async def test_refusals_come_before_queuing(engine: Engine) -> None:
    with pytest.raises(OutputTooLong, match=r"5 tokens.*80 positions of one answer.*at most 75"):
        await collect(engine.generate(request("hello", tokens=76)))
    with pytest.raises(EmptyPrompt, match="no tokens"):
        await collect(engine.generate(request("")))
    with pytest.raises(UnknownAdapter):
        await collect(engine.generate(request("hello", "zebra")))


async def test_memory_is_never_overcommitted(engine: Engine, decoder: ScriptedStepDecoder) -> None:
    """Answers that only the one large row holds run one by one; small ones run meanwhile."""
    decoder.gate.clear()
    large = [collect(engine.generate(request("x" * 40, "a", tokens=39))) for _ in range(3)]
    small = [collect(engine.generate(request("tiny", "b", tokens=8))) for _ in range(4)]
    tasks = [asyncio.create_task(work) for work in (*large, *small)]
    await until(lambda: engine.num_running + engine.num_waiting == 7)
    decoder.gate.set()
    for events in await asyncio.gather(*tasks):
        assert only_terminal(events).finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    on_large = [step for step in decoder.steps if "a" in step.values()]
    assert all(list(step.values()).count("a") == 1 for step in on_large)
    assert all(step.get(2, "a") == "a" for step in on_large)


async def test_a_failing_step_ends_what_runs_and_serves_the_rest(
    engine: Engine, decoder: ScriptedStepDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    decoder.gate.clear()
    running = [asyncio.create_task(collect(engine.generate(request(f"run {i}")))) for i in range(3)]
    await until(lambda: engine.num_running + engine.num_waiting == 3)
    decoder.error = RuntimeError("patient text")
    decoder.gate.set()
    for events in await asyncio.gather(*running):
        error = only_terminal(events).error
        assert error is not None
        assert error.code == "decoder_failed"
        assert "patient" not in error.message
    await until(lambda: not decoder.rows)
    assert "patient" not in caplog.text
    assert "in step" in caplog.text, "the log names no place"
    decoder.error = None
    assert only_terminal(await collect(engine.generate(request("next")))).error is None
    engine.check()


async def test_failures_in_a_row_fail_the_health_check(
    engine: Engine, decoder: ScriptedStepDecoder
) -> None:
    decoder.error = RuntimeError("broken device")
    for _ in range(MAX_FAILURES_IN_A_ROW):
        last = only_terminal(await collect(engine.generate(request("hello"))))
        assert last.finish_reason is FinishReason.ERROR
    with pytest.raises(EngineStopped, match="failed 3 times in a row"):
        engine.check()


async def test_a_step_that_hangs_fails_the_health_check_and_one_that_ends_heals_it(
    decoder: ScriptedStepDecoder,
) -> None:
    engine = Engine.on_thread(decoder, limits(step_timeout_s=0.05))
    engine.check()
    decoder.gate.clear()
    hanging = asyncio.create_task(collect(engine.generate(request("hello"))))
    await until(lambda: has_stopped(engine))
    with pytest.raises(EngineStopped, match=r"a step has not ended for .* \(limit 0.05 s\)"):
        engine.check()
    decoder.gate.set()
    assert only_terminal(await hanging).error is None
    await until(lambda: not has_stopped(engine))
    await asyncio.to_thread(engine.close)


async def test_a_loop_that_dies_fails_every_waiter(
    engine: Engine, decoder: ScriptedStepDecoder
) -> None:
    decoder.gate.clear()
    tasks = [asyncio.create_task(collect(engine.generate(request(f"{i}")))) for i in range(6)]
    await until(lambda: engine.num_running + engine.num_waiting == 6)
    decoder.error = SystemExit()
    decoder.gate.set()
    for events in await asyncio.gather(*tasks):
        error = only_terminal(events).error
        assert error is not None
        assert error.code == "engine_stopped"
    with pytest.raises(EngineStopped, match="loop died: SystemExit"):
        engine.check()
    with pytest.raises(EngineStopped):
        engine.run_between_steps(lambda: None)


async def test_tasks_run_between_steps(engine: Engine, decoder: ScriptedStepDecoder) -> None:
    """An adapter that is evicted before its request has a row: that request alone ends."""

    def evict() -> None:
        decoder.adapters = frozenset({"a"})

    decoder.gate.clear()
    filling = asyncio.create_task(collect(engine.generate(request("fill"))))
    await until(lambda: engine.num_running == 1)
    late = asyncio.create_task(collect(engine.generate(request("late", "b"))))
    await until(lambda: engine.num_waiting == 1)
    done = asyncio.wrap_future(engine.run_between_steps(evict))
    decoder.gate.set()
    await done
    error = only_terminal(await late).error
    assert error is not None
    assert error.code == "unknown_adapter"
    assert only_terminal(await filling).error is None
    failing = asyncio.wrap_future(engine.run_between_steps(lambda: 1 // 0))
    with pytest.raises(ZeroDivisionError):
        await failing
    engine.check()


class CountedSet(frozenset[str]):
    """Counts how often it is asked for a member."""

    num_lookups = 0

    def __contains__(self, name: object) -> bool:
        self.num_lookups += 1
        return super().__contains__(name)


async def test_waiting_requests_are_compared_with_the_adapters_only_when_these_change(
    engine: Engine, decoder: ScriptedStepDecoder
) -> None:
    """Not in every step: with 512 waiting and 1,024 resident that took 5.9 ms of each."""
    decoder.gate = turnstile = Turnstile()
    decoder.adapters = resident = CountedSet({"a", "b"})
    texts = [f"question {i}" for i in range(40)]
    tasks = [
        asyncio.create_task(collect(engine.generate(request(text, "ab"[i % 2]))))
        for i, text in enumerate(texts)
    ]
    await until(lambda: engine.num_waiting + engine.num_running == 40)
    for _ in range(20):
        turnstile.let_through(1)
    await until(lambda: len(decoder.steps) >= 19)
    assert engine.num_waiting >= 30, "too few wait for the test to mean anything"
    # Once when a request is accepted, once when it arrives, once because the set was replaced.
    assert resident.num_lookups <= 3 * 40
    decoder.adapters = smaller = CountedSet({"a"})
    turnstile.let_through(1000)
    answers = [only_terminal(events) for events in await asyncio.gather(*tasks)]
    refused = [last.error.code for last in answers if last.error is not None]
    assert set(refused) == {"unknown_adapter"}
    assert len(refused) >= 10
    assert smaller.num_lookups <= 40


async def test_fast_tokens_travel_in_groups(decoder: ScriptedStepDecoder) -> None:
    engine = Engine.on_thread(decoder, limits(emit_interval_s=30.0))
    decoder.gate = turnstile = Turnstile()
    generated = engine.generate(request("hello world"))
    reading = asyncio.ensure_future(anext(generated))
    while not reading.done():  # the prompt is read in several steps
        turnstile.let_through(1)
        await asyncio.sleep(0.01)
    events = [await reading]
    turnstile.let_through(20)
    events += await collect(generated)
    assert [e.text for e in events] == ["h", "ello world"]
    assert events[-1].num_tokens == 12
    engine.close()


async def test_many_streams_send_larger_pieces_less_often(decoder: ScriptedStepDecoder) -> None:
    """Two events a second for all together: three streams that end sooner have two pieces each."""
    engine = Engine.on_thread(decoder, limits(max_events_per_s=2.0))
    try:
        texts = ["one long answer", "another long one", "the third answer"]
        answers = await asyncio.gather(*(collect(engine.generate(request(t))) for t in texts))
        for text, events in zip(texts, answers, strict=True):
            assert "".join(event.text for event in events) == text
            assert len(events) <= 3, "the first token, the end, and what came while one ran alone"
    finally:
        engine.close()
