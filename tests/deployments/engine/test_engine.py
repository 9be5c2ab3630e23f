"""The engine with a scripted decoder: one terminal event for each request, whatever happens."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest

from deployments.engine.core import MAX_FAILURES_IN_A_ROW, TASK_TIMEOUT_S, EngineLimits, Pulse
from deployments.engine.decoder import DecoderInfo, RowSink
from deployments.engine.engine import Engine
from deployments.engine.errors import (
    BadPromptToken,
    EngineStopped,
    OutputTooLong,
    PromptTooLong,
    QueueFull,
    UnknownAdapter,
)
from deployments.engine.request import FinishReason, Request, SamplingParams, TokenEvent

EOS = 0


class ScriptedDecoder:
    """Each row repeats its prompt, then ends. Letters are token ids; `gate` pauses each step."""

    def __init__(self) -> None:
        self.groups: list[tuple[str | None, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.num_steps = 0
        self._adapter: str | None = None

    @property
    def info(self) -> DecoderInfo:
        names = frozenset({"a", "b"})
        about = DecoderInfo("scripted", "test", "cpu", "none", 64, frozenset({EOS}), names)
        return dataclasses.replace(about, num_token_ids=256)

    def set_adapter(self, name: str | None) -> None:
        self._adapter = name

    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        self.groups.append((self._adapter, len(group)))
        step = 0
        while not all(sink.is_done(row) for row in range(len(group))):
            assert self.gate.wait(timeout=10)
            self.num_steps += 1
            if self.error is not None:
                raise self.error
            for row, request in enumerate(group):
                if not sink.is_done(row):
                    prompt = request.prompt_ids
                    sink.push(row, prompt[step] if step < len(prompt) else EOS)
            step += 1

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


class Turnstile(threading.Event):
    """A gate that lets a step through for each permit."""

    def __init__(self) -> None:
        super().__init__()
        self._permits = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        return self._permits.acquire(timeout=timeout)

    def let_through(self, num_steps: int) -> None:
        self._permits.release(num_steps)


def request(text: str, adapter: str | None = "a", max_tokens: int = 32, **more: object) -> Request:
    sampling = SamplingParams(max_tokens, **more)  # type: ignore[arg-type]
    return Request(f"r-{text}", tuple(text.encode()), adapter, sampling)


async def collect(events: AsyncGenerator[TokenEvent, None]) -> list[TokenEvent]:
    return [event async for event in events]


def only_terminal(events: list[TokenEvent]) -> TokenEvent:
    assert [e.finish_reason is not None for e in events] == [False] * (len(events) - 1) + [True]
    return events[-1]


async def until(condition: object, timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.005)


@pytest.fixture
def decoder() -> ScriptedDecoder:
    return ScriptedDecoder()


@pytest.fixture
async def engine(decoder: ScriptedDecoder) -> AsyncIterator[Engine]:
    engine = Engine.on_thread(decoder, EngineLimits(max_rows=4, max_waiting=3, max_input_tokens=16))
    yield engine
    decoder.gate.set()
    await until(lambda: engine.num_running == 0 and engine.num_waiting == 0)
    engine.close()


async def test_streams_token_by_token_and_ends_once(
    engine: Engine, decoder: ScriptedDecoder
) -> None:
    decoder.gate = turnstile = Turnstile()
    turnstile.let_through(1)
    events = []
    async for event in engine.generate(request("hello")):
        events.append(event)
        turnstile.let_through(1)  # the next step waits for the reader
    last = only_terminal(events)
    assert [e.text for e in events] == ["h", "e", "l", "l", "o", ""]
    assert last.finish_reason is FinishReason.STOP
    assert (last.num_tokens, last.num_prompt_tokens) == (6, 5)
    assert last.timings.queue_s is not None
    assert last.timings.first_token_s is not None
    assert last.timings.queue_s <= last.timings.first_token_s <= (last.timings.total_s or -1)


async def test_a_slow_reader_gets_everything_at_once_and_nobody_waits_for_it(
    engine: Engine, decoder: ScriptedDecoder
) -> None:
    events = engine.generate(request("hello"))
    decoder.gate = turnstile = Turnstile()
    turnstile.let_through(1)
    first = await anext(events)
    turnstile.let_through(5)
    await until(lambda: engine.num_running == 0)  # the row ended, and its reader is elsewhere
    rest = await collect(events)
    assert [e.text for e in (first, *rest)] == ["h", "ello"]
    assert only_terminal(rest).num_tokens == 6


async def test_without_streaming_there_is_one_event(engine: Engine) -> None:
    events = await collect(engine.generate(request("hello"), stream=False))
    assert [e.text for e in events] == ["hello"]


async def test_length_is_said_to_be_length(engine: Engine) -> None:
    events = await collect(engine.generate(request("hello", max_tokens=3)))
    assert "".join(e.text for e in events) == "hel"
    assert only_terminal(events).finish_reason is FinishReason.LENGTH


async def test_a_stop_string_ends_the_row(engine: Engine) -> None:
    events = await collect(engine.generate(request("one. two", stop=(". ",))))
    assert "".join(e.text for e in events) == "one"
    assert only_terminal(events).finish_reason is FinishReason.STOP


@pytest.mark.parametrize("stream", [True, False])
async def test_a_loop_ends_the_row_too(
    engine: Engine, decoder: ScriptedDecoder, stream: bool
) -> None:
    asked = request("a b " * 4, loop_words=2)
    events = await collect(engine.generate(asked, stream=stream))
    assert "".join(e.text for e in events) == "a b a b"
    ended = only_terminal(events)
    assert (ended.finish_reason, ended.num_tokens <= 16) == (FinishReason.LOOP, True)
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    after = await collect(engine.generate(request("hello")))
    assert only_terminal(after).finish_reason is FinishReason.STOP
    assert decoder.groups == [("a", 1), ("a", 1)]


async def test_deadlines_end_what_runs_and_what_waits(
    engine: Engine, decoder: ScriptedDecoder
) -> None:
    """A group decoder has no scheduler: the rows look at their own deadlines."""
    decoder.gate.clear()
    late = dataclasses.replace(request("hello"), deadline_s=0.05)
    running = asyncio.create_task(collect(engine.generate(late)))
    await until(lambda: engine.num_running == 1)
    waiting = asyncio.create_task(collect(engine.generate(late)))
    in_time = dataclasses.replace(request("hello", "b"), deadline_s=60)
    endless = asyncio.create_task(collect(engine.generate(in_time)))
    await until(lambda: engine.num_waiting == 2)
    await asyncio.sleep(0.06)
    decoder.gate.set()
    ended = only_terminal(await running)
    assert (ended.finish_reason, ended.text, ended.num_tokens) == (FinishReason.TIMEOUT, "h", 1)
    never_begun = only_terminal(await waiting)
    assert (never_begun.finish_reason, never_begun.num_tokens) == (FinishReason.TIMEOUT, 0)
    assert only_terminal(await endless).finish_reason is FinishReason.STOP
    assert decoder.groups == [("a", 1), ("b", 1)]


async def test_requests_are_grouped_by_adapter(engine: Engine, decoder: ScriptedDecoder) -> None:
    decoder.gate.clear()
    first = asyncio.create_task(collect(engine.generate(request("first", None))))
    await until(lambda: engine.num_running == 1)
    wanted = [("x", "a"), ("y", "b"), ("z", "a")]
    rest = [asyncio.create_task(collect(engine.generate(request(t, a)))) for t, a in wanted]
    await until(lambda: engine.num_waiting == 3)
    decoder.gate.set()
    answers = ["".join(e.text for e in events) for events in await asyncio.gather(first, *rest)]
    assert answers == ["first", "x", "y", "z"]
    assert decoder.groups == [(None, 1), ("a", 2), ("b", 1)]


async def test_refusals_name_the_numbers(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match=r"17 tokens long.*at most 16"):
        await collect(engine.generate(request("x" * 17)))
    with pytest.raises(OutputTooLong, match=r"\(60\).*64 positions.*at most 59"):
        await collect(engine.generate(request("hello", max_tokens=60)))
    with pytest.raises(UnknownAdapter, match=r"'zebra'.*loaded: a, b"):
        await collect(engine.generate(request("hello", "zebra")))


async def test_a_token_that_the_model_has_not_is_refused_before_any_step(engine: Engine) -> None:
    """Its tokenizer has it: an embedding that is looked up behind its end fails for the batch."""
    asked = dataclasses.replace(request("hello"), prompt_ids=(104, 255, 256))
    with pytest.raises(BadPromptToken, match=r"position 2: token id 256 .* the ids 0 to 255;"):
        await collect(engine.generate(asked))
    answer = await collect(engine.generate(dataclasses.replace(asked, prompt_ids=(104, 105))))
    assert only_terminal(answer).error is None


async def test_a_full_queue_refuses_and_the_accepted_run_on(
    engine: Engine, decoder: ScriptedDecoder
) -> None:
    decoder.gate.clear()
    first = asyncio.create_task(collect(engine.generate(request("first"))))
    await until(lambda: engine.num_running == 1)
    waiting = [asyncio.create_task(collect(engine.generate(request(t)))) for t in "xyz"]
    await until(lambda: engine.num_waiting == 3)
    with pytest.raises(QueueFull, match=r"3 requests are waiting.*limit 3") as refused:
        await collect(engine.generate(request("late")))
    assert refused.value.info.retry_after_s == QueueFull.retry_after_s
    decoder.gate.set()
    for events in await asyncio.gather(first, *waiting):
        assert only_terminal(events).finish_reason is FinishReason.STOP


async def test_closing_the_generator_frees_the_row(
    engine: Engine, decoder: ScriptedDecoder
) -> None:
    decoder.gate.clear()
    events = engine.generate(request("a long answer"))
    reading = asyncio.create_task(anext(events))
    await until(lambda: engine.num_running == 1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    decoder.gate.set()
    await until(lambda: engine.num_running == 0)
    assert decoder.num_steps <= 2


async def test_a_waiting_request_can_be_cancelled(engine: Engine, decoder: ScriptedDecoder) -> None:
    decoder.gate.clear()
    first = asyncio.create_task(collect(engine.generate(request("first"))))
    await until(lambda: engine.num_running == 1)
    waiting = asyncio.create_task(collect(engine.generate(request("second", "b"))))
    await until(lambda: engine.num_waiting == 1)
    waiting.cancel()
    await until(lambda: engine.num_waiting == 0)
    decoder.gate.set()
    await first
    assert decoder.groups == [("a", 1)]


async def test_a_failing_group_ends_with_errors_and_the_next_one_works(
    engine: Engine, decoder: ScriptedDecoder
) -> None:
    decoder.error = RuntimeError("patient text")
    last = only_terminal(await collect(engine.generate(request("hello"))))
    assert last.finish_reason is FinishReason.ERROR
    assert last.error is not None
    assert last.error.code == "decoder_failed"
    assert "patient text" not in last.error.message
    engine.check()
    decoder.error = None
    assert only_terminal(await collect(engine.generate(request("hello")))).error is None


async def test_failures_in_a_row_fail_the_health_check(
    engine: Engine, decoder: ScriptedDecoder
) -> None:
    decoder.error = RuntimeError("broken device")
    for _ in range(MAX_FAILURES_IN_A_ROW):
        await collect(engine.generate(request("hello")))
    with pytest.raises(EngineStopped, match="failed 3 times in a row"):
        engine.check()


async def test_a_loop_that_dies_fails_every_waiter(
    engine: Engine, decoder: ScriptedDecoder
) -> None:
    decoder.gate.clear()
    running = asyncio.create_task(collect(engine.generate(request("one"))))
    await until(lambda: engine.num_running == 1)
    waiting = asyncio.create_task(collect(engine.generate(request("two", "b"))))
    await until(lambda: engine.num_waiting == 1)
    decoder.error = SystemExit()
    decoder.gate.set()
    for events in await asyncio.gather(running, waiting):
        error = only_terminal(events).error
        assert error is not None
        assert error.code == "engine_stopped"
    with pytest.raises(EngineStopped, match="loop died: SystemExit"):
        engine.check()
    with pytest.raises(EngineStopped):
        await collect(engine.generate(request("three")))


async def test_close_ends_what_waits(decoder: ScriptedDecoder) -> None:
    engine = Engine.on_thread(decoder, EngineLimits(max_rows=1, max_waiting=3, max_input_tokens=16))
    decoder.gate.clear()
    tasks = [asyncio.create_task(collect(engine.generate(request(t)))) for t in ("one", "two")]
    await until(lambda: engine.num_running == 1 and engine.num_waiting == 1)
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    for events in await asyncio.gather(*tasks):
        assert only_terminal(events).finish_reason is FinishReason.ERROR
    decoder.gate.set()
    await closing
    with pytest.raises(EngineStopped, match="shutting down"):
        engine.check()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_text_that_cannot_be_made_ends_its_own_request_alone(
    engine: Engine, decoder: ScriptedDecoder, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """Both are rows of the same steps; the tokenizer fails for one of them."""
    decode = decoder.decode

    def failing(token_ids: Sequence[int]) -> str:
        text = decode(token_ids)
        if "x" in text:
            raise OverflowError(text)
        return text

    monkeypatch.setattr(decoder, "decode", failing)
    wanted = [engine.generate(request(text), stream=stream) for text in ("axe", "abc", "xyz")]
    broken, fine, other = await asyncio.wait_for(asyncio.gather(*map(collect, wanted)), 5)
    assert "".join(event.text for event in fine) == "abc"
    assert only_terminal(fine).error is None
    for events in (broken, other):
        error = only_terminal(events).error
        assert error is not None
        assert error.code == "decoder_failed"
    assert (engine.num_running, engine.num_waiting) == (0, 0)
    engine.check()


@pytest.mark.parametrize(
    ("doing", "seconds", "is_stuck"),
    [
        ("idle", 1e6, False),
        ("step", 29, False),
        ("step", 31, True),
        ("task", TASK_TIMEOUT_S - 1, False),  # a GPU compiles kernels
        ("task", TASK_TIMEOUT_S + 1, True),  # it does not answer any more
    ],
)
def test_a_step_or_a_task_that_never_ends_is_noticed(
    doing: str, seconds: float, is_stuck: bool
) -> None:
    pulse = Pulse(doing, 100.0)
    if not is_stuck:
        pulse.check(100.0 + seconds, 30.0)
        return
    with pytest.raises(EngineStopped, match=f"a {doing} has not ended for"):
        pulse.check(100.0 + seconds, 30.0)
