"""One request's events: exactly one terminal event, and nothing after it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from deployments.engine.errors import EngineStopped
from deployments.engine.output import Pace, RequestOutputCollector, RequestState
from deployments.engine.request import FinishReason, Request, SamplingParams, Timings, TokenEvent


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token_ids).decode()


class Clock:
    """Seconds; a test sets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def state(
    clock: Clock,
    *,
    max_tokens: int = 8,
    emit_interval_s: float = 0,
    pace: Pace | None = None,
    stream: bool = True,
    **sampling: Any,
) -> RequestState:
    asked = Request("r", (1, 2), None, SamplingParams(max_tokens, **sampling))
    return RequestState(
        asked, decode, stream=stream, pace=pace or Pace(emit_interval_s), clock=clock
    )


def event(text: str, reason: FinishReason | None = None) -> TokenEvent:
    return TokenEvent("r", text, 1, 2, Timings(), reason)


async def test_what_comes_after_the_terminal_event_is_dropped() -> None:
    collector = RequestOutputCollector()
    collector.put(event("a"))
    collector.put(event("b", FinishReason.LENGTH))
    collector.put(event("c"))
    ended = await collector.get()
    assert (ended.text, ended.finish_reason) == ("ab", FinishReason.LENGTH)
    collector.put(event("d"))
    waiting = asyncio.ensure_future(collector.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_a_request_ends_once() -> None:
    row = state(Clock())
    row.push(ord("a"), 0.0)
    row.finish(FinishReason.ERROR, 0, EngineStopped("closed").info)
    row.finish(FinishReason.STOP, 2)
    ended = await asyncio.wait_for(row.events.get(), 5)
    assert (ended.text, ended.num_tokens) == ("a", 1)
    assert ended.error is not None
    assert ended.error.code == "engine_stopped"
    waiting = asyncio.ensure_future(row.events.get())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()


async def test_a_stop_string_ends_the_answer_before_the_core_has_heard_of_it() -> None:
    """Tokens that the core made meanwhile are neither text nor counted."""
    row = state(Clock(), stop=("lo",), emit_interval_s=30)
    row.begin()
    for token in b"hello":
        row.push(token, 0.0)
    assert row.is_done
    ended = await asyncio.wait_for(row.events.get(), 5)
    assert (ended.text, ended.num_tokens) == ("hel", 5)
    assert ended.finish_reason is FinishReason.STOP


async def test_an_answer_ends_at_a_loop_streamed_or_whole() -> None:
    """With its own reason, before the third repetition, and with all tokens counted."""
    text = "so: a b c a b c a b c a b c a b c a b c"
    for stream in (True, False):
        row = state(Clock(), max_tokens=60, loop_words=2, stream=stream)
        num_pushed = 0
        while not row.is_done:
            row.push(ord(text[num_pushed]), 0.0)
            num_pushed += 1
        ended = await row.events.get()
        assert (ended.text, ended.finish_reason) == ("so: a b c a b c", FinishReason.LOOP)
        assert ended.num_tokens == num_pushed
        assert 15 < num_pushed < 30, "it went on for the length of the answer"


async def test_a_loop_that_only_the_last_words_show() -> None:
    """The core has ended the answer, for a reason of its own, when its text is known."""
    text = "a b a b a b"
    for reason in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TIMEOUT):
        row = state(Clock(), max_tokens=60, loop_words=2, emit_interval_s=30)
        for character in text:
            row.push(ord(character), 0.0)
        row.finish(reason, len(text))
        ended = await row.events.get()
        assert (ended.text, ended.finish_reason) == ("a b a b", FinishReason.LOOP)


async def test_an_answer_with_a_minimum_ends_at_no_loop() -> None:
    text = "so: a b c a b c a b c a b c a b c a b c"
    row = state(Clock(), max_tokens=len(text), min_tokens=len(text), loop_words=2, stream=False)
    for character in text:
        row.push(ord(character), 0.0)
    row.finish(FinishReason.LENGTH, len(text))
    ended = await row.events.get()
    assert (ended.text, ended.finish_reason) == (text, FinishReason.LENGTH)


async def test_a_stop_string_before_a_loop_and_a_loop_before_a_stop_string() -> None:
    for text, said, reason in (
        ("a b a b.end a b", "a b a b", FinishReason.STOP),
        ("a b a b a b .end", "a b a b", FinishReason.LOOP),
    ):
        row = state(Clock(), max_tokens=60, loop_words=2, stop=(".end",), stream=False)
        for character in text:
            if not row.is_done:
                row.push(ord(character), 0.0)
        assert row.is_done
        ended = await row.events.get()
        assert (ended.text.rstrip(), ended.finish_reason) == (said, reason)


async def test_the_end_of_sequence_token_counts_and_is_no_text() -> None:
    clock = Clock()
    row = state(clock, emit_interval_s=30)
    clock.now = 1.0
    row.begin()
    row.push(ord("a"), 2.0)
    assert (await row.events.get()).text == "a"
    row.push(ord("b"), 2.5)
    clock.now = 3.0
    row.finish(FinishReason.STOP, 3)
    ended = await row.events.get()
    assert (ended.text, ended.num_tokens) == ("b", 3)
    assert ended.timings == Timings(1.0, 2.0, 3.0)


async def steps_that_emit(pace: Pace) -> list[int]:
    """How many of 16 streams, which began one step of 30 ms after the other, emit in each step."""
    clocks = [Clock() for _ in range(16)]
    rows = [state(clock, pace=pace) for clock in clocks]
    found = []
    for step in range(16 + 24):
        for number, row in enumerate(rows[: step + 1]):
            clocks[number].now = step * 0.03
            row.push(ord("a"), clocks[number].now)
        emitted = [row for row in rows if row.events._latest is not None]
        assert step >= 16 or rows[step] in emitted, "a first token waits for nobody"
        for row in emitted:
            await row.events.get()
        found.append(len(emitted))
    return found[16:]


async def test_streams_that_emit_together_do_so_in_the_same_steps() -> None:
    together, spread = await steps_that_emit(Pace(0.08, True)), await steps_that_emit(Pace(0.08))
    assert set(together) == {0, 16}
    assert together.count(16) == 9  # in 24 steps, which are 9 times 80 ms
    assert 0 not in spread
