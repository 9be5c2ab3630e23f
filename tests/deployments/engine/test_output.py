"""One request's events: exactly one terminal event, and nothing after it."""

import asyncio
import threading
from collections.abc import Sequence

from deployments.engine.errors import EngineStopped
from deployments.engine.output import RequestOutputCollector, RequestState
from deployments.engine.request import FinishReason, Request, SamplingParams, Timings, TokenEvent


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token_ids).decode()


class Clock:
    """Seconds; calls `on_read` once, as a thread switch at this place would run another thread."""

    def __init__(self) -> None:
        self.now = 0.0
        self.on_read = lambda: None

    def __call__(self) -> float:
        on_read, self.on_read = self.on_read, lambda: None
        on_read()
        return self.now


def state(clock: Clock) -> RequestState:
    asked = Request("r", (1, 2), None, SamplingParams(8))
    eos_ids = frozenset({0})
    return RequestState(asked, decode, stream=True, emit_interval_s=0, clock=clock, eos_ids=eos_ids)


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


async def test_a_close_in_the_middle_of_an_emit_does_not_lose_the_terminal_event() -> None:
    """The engine's thread is about to emit a token's event when close() ends the request: the
    partial event reaches the reader's side after the terminal one."""
    clock = Clock()
    row = state(clock)
    row.push(ord("a"))
    assert (await row.events.get()).text == "a"
    switches = iter([lambda: None, lambda: row.finish(FinishReason.ERROR, EngineStopped("closed"))])

    def switch() -> None:
        next(switches)()
        clock.on_read = lambda: next(switches, lambda: None)()

    clock.on_read = switch  # the first read is push's, the second is that of its emit
    row.push(ord("b"))
    ended = await asyncio.wait_for(row.events.get(), 5)
    assert ended.finish_reason is FinishReason.ERROR
    assert ended.error is not None
    assert ended.error.code == "engine_stopped"


async def test_a_request_ends_once_whichever_threads_end_it() -> None:
    for _ in range(50):
        row = state(Clock())
        start = threading.Barrier(3)

        def push(row: RequestState = row, start: threading.Barrier = start) -> None:
            start.wait()
            for token in b"abcdefgh":
                row.push(token)

        def end(row: RequestState = row, start: threading.Barrier = start) -> None:
            start.wait()
            row.finish(FinishReason.ERROR, EngineStopped("closed"))

        threads = [threading.Thread(target=target) for target in (push, end)]
        for thread in threads:
            thread.start()
        start.wait()
        while (await asyncio.wait_for(row.events.get(), 5)).finish_reason is None:
            pass
        for thread in threads:
            thread.join()


async def test_an_answer_ends_at_a_loop_streamed_or_whole() -> None:
    """With its own reason, before the third repetition, and with all tokens counted."""
    with_least = SamplingParams(39, loop_words=2, min_tokens=39)
    row = RequestState(
        Request("r", (1, 2), None, with_least),
        decode,
        stream=False,
        emit_interval_s=0,
        clock=Clock(),
        eos_ids=frozenset(),
    )
    for character in "so: a b c a b c a b c a b c a b c a b c":
        row.push(ord(character))
    await asyncio.sleep(0)
    assert (await row.events.get()).finish_reason is FinishReason.LENGTH
    asked = Request("r", (1, 2), None, SamplingParams(60, loop_words=2))
    for stream in (True, False):
        row = RequestState(
            asked, decode, stream=stream, emit_interval_s=0, clock=Clock(), eos_ids=frozenset({0})
        )
        for character in "so: a b c a b c a b c a b c a b c a b c":
            row.push(ord(character))
        await asyncio.sleep(0)
        ended = await row.events.get()
        assert (ended.text, ended.finish_reason) == ("so: a b c a b c", FinishReason.LOOP)
        assert 15 < ended.num_tokens < 30, "it went on for the length of the answer"
