"""One answer from the backend: its events with a deadline, exactly one of them terminal, recorded
and counted once however it ends.

Answers that are generated side by side, as one stream of pieces.

A refusal gets its own HTTP status as long as no answer has begun; after that a failure is a piece.

Server-sent events: their text, and a response that gives back what it holds however it ends.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.api.middleware import engine_error, internal_error, log_unexpected
from deployments.api.protocol import ApiError
from deployments.engine.request import FinishReason, Timings, TokenEvent
from deployments.messages import GRACE_S, Backend, GenerateRequest, Outcome


@dataclass(frozen=True, slots=True)
class Completed:
    """A whole answer: its text and its terminal event."""

    text: str
    event: TokenEvent


class Generation:
    """`call` to the backend. Its events can be read once. `specialty` and `confidence` are for the
    metrics.

    `num_tokens`: of the prompt and the answer, as far as is known by now; 0 once it has failed, so
    that a failure of ours costs the caller nothing.
    """

    def __init__(
        self,
        backend: Backend,
        call: GenerateRequest,
        specialty: str | None,
        confidence: float | None,
    ) -> None:
        self.num_tokens = 0
        self._backend = backend
        self._call = call
        self._specialty = specialty
        self._confidence = confidence

    async def events(self) -> AsyncGenerator[TokenEvent, None]:
        """Closing it cancels the answer on the model's side.

        Raises:
            RuntimeError: the backend ended without a terminal event.
        """
        outcome = str(FinishReason.CANCELLED)
        latest: TokenEvent | None = None
        try:
            async with contextlib.aclosing(self._backend.generate(self._call)) as generated:
                while latest is None or latest.finish_reason is None:
                    latest = await self._next(generated, latest)
                    failed = latest.error is not None
                    self.num_tokens = 0 if failed else latest.num_prompt_tokens + latest.num_tokens
                    if latest.finish_reason is not None:
                        outcome = latest.error.code if latest.error else str(latest.finish_reason)
                    yield latest
        except Exception:
            outcome = "internal_error"
            raise
        finally:
            self._backend.record(
                Outcome(self._specialty, self._call.adapter, outcome, self._confidence)
            )

    async def whole(self) -> Completed:
        """Reads all the events.

        Raises:
            ApiError: the answer failed, or its deadline passed before anything was generated.
        """
        pieces = []
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                pieces.append(event.text)
        failure = failure_of(event)
        if failure:
            raise failure
        return Completed("".join(pieces), event)

    async def _next(
        self, generated: AsyncGenerator[TokenEvent, None], latest: TokenEvent | None
    ) -> TokenEvent:
        try:
            async with asyncio.timeout(self._seconds_left()) as timeout:
                return await anext(generated)
        except TimeoutError:
            if not timeout.expired():
                raise
            return self._timed_out(latest)
        except StopAsyncIteration:
            raise RuntimeError(
                f"request {self._call.request_id} ended without a terminal event"
            ) from None

    def _seconds_left(self) -> float | None:
        deadline_at = self._call.deadline_at
        return None if deadline_at is None else deadline_at - time.time() + GRACE_S

    def _timed_out(self, latest: TokenEvent | None) -> TokenEvent:
        reason = FinishReason.TIMEOUT
        if latest is None:
            return TokenEvent(self._call.request_id, "", 0, 0, Timings(), reason)
        return replace(latest, text="", finish_reason=reason)


def failure_of(event: TokenEvent) -> ApiError | None:
    """The refusal that a terminal event stands for; None: there is an answer."""
    if event.error is not None:
        return engine_error(event.error)
    if event.finish_reason is FinishReason.TIMEOUT and not event.num_tokens:
        return ApiError(
            408,
            "deadline_exceeded",
            "the deadline passed before anything was generated: give a larger timeout_s, or try "
            "again when the server is less busy",
            param="timeout_s",
        )
    return None


@dataclass(frozen=True, slots=True)
class StreamItem:
    """Text of answer number `opinion`. Its last piece has the terminal `event`, or the `failure`
    that ended it."""

    opinion: int
    text: str = ""
    event: TokenEvent | None = None
    failure: ApiError | None = None

    @property
    def is_last(self) -> bool:
        return self.event is not None or self.failure is not None


class AnswerStream:
    """`await begin()`, iterate once, and `await close()` however it ended."""

    def __init__(self, answers: Sequence[Generation]) -> None:
        self._pieces = _side_by_side(answers) if len(answers) > 1 else _pieces(0, answers[0])
        self._early: list[StreamItem] = []

    async def begin(self) -> None:
        """Wait until an answer has begun.

        Raises:
            ApiError: all of them failed first; the failure that came first.
        """
        try:
            async for piece in self._pieces:
                self._early.append(piece)
                if piece.failure is None:
                    return
        except BaseException:
            await self.close()
            raise
        failure = self._early[0].failure
        assert failure is not None, "the answers ended without a piece that is their last"
        raise failure

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        for piece in self._early:
            yield piece
        async for piece in self._pieces:
            yield piece

    async def close(self) -> None:
        """Cancels what has not ended."""
        await self._pieces.aclose()


async def _pieces(opinion: int, answer: Generation) -> AsyncGenerator[StreamItem, None]:
    try:
        async with contextlib.aclosing(answer.events()) as events:
            async for event in events:
                if event.finish_reason is None:
                    yield StreamItem(opinion, event.text)
                    continue
                failure = failure_of(event)
                yield StreamItem(opinion, event.text, None if failure else event, failure)
    except Exception as error:
        log_unexpected(error, "a stream")
        yield StreamItem(opinion, failure=internal_error())


async def _side_by_side(answers: Sequence[Generation]) -> AsyncGenerator[StreamItem, None]:
    queue: asyncio.Queue[StreamItem] = asyncio.Queue()

    async def pump(opinion: int, answer: Generation) -> None:
        async with contextlib.aclosing(_pieces(opinion, answer)) as pieces:
            async for piece in pieces:
                queue.put_nowait(piece)

    pumps = [asyncio.create_task(pump(*numbered)) for numbered in enumerate(answers)]
    num_left = len(pumps)
    try:
        while num_left:
            piece = await queue.get()
            num_left -= piece.is_last
            yield piece
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


logger = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"  # how OpenAI ends a stream


def sse(value: Mapping[str, Any], event: str | None = None) -> str:
    """One event; `event` is its name, where it has one."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n"


def error_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """A failure in mid-stream: the status is sent already, so the body carries the request's id."""
    return {"error": {**error.body()["error"], "request_id": request_id}}


class EventStream(StreamingResponse):
    """Args:
    close: called once when the response is over: sent whole, broken off, or never begun.
    """

    def __init__(
        self, body: AsyncGenerator[str, None], *, close: Callable[[], Awaitable[None]]
    ) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(body, media_type="text/event-stream", headers=headers)
        self._body = body
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._body.aclose()
            await self._close()

    async def listen_for_disconnect(self, receive: Receive) -> None:
        """Ends when the client has left. Ray's `receive` says so by raising that its task was
        cancelled, which would fill the log with a traceback for each client that leaves."""
        try:
            await super().listen_for_disconnect(receive)
        except Exception as error:
            logger.debug("a stream's client has left: %s", type(error).__name__)
