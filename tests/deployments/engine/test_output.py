"""One request's events: exactly one terminal event, and nothing after it."""

import asyncio
from collections.abc import Sequence

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


def state(clock: Clock, *, stop: tuple[str, ...] = (), emit_interval_s: float = 0) -> RequestState:
    asked = Request("r", (1, 2), None, SamplingParams(8, stop=stop))
    return RequestState(asked, decode, stream=True, pace=Pace(emit_interval_s), clock=clock)


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
