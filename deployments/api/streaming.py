"""Answers that are generated at the same time, as one stream of server-sent events.

A refusal gets its own HTTP status as long as no answer has begun, for HEADERS_AFTER_S at most;
after that, a failure is an event. From the backend's generator to the text of an event there is no
other generator: items are asked for one by one, and an endpoint's generator turns them into events.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.api.comments import commented
from deployments.api.errors import ApiError, internal_error, log_unexpected
from deployments.api.generation import Generation, complete
from deployments.api.grounding import Verdict
from deployments.api.protocol.base import ReplyModel
from deployments.engine.request import ScoredToken, TokenEvent

logger = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"  # how OpenAI ends a stream
# Refusals that are known at once come much sooner, and proxies wait 15 s or longer.
HEADERS_AFTER_S = 10.0


def sse(reply: ReplyModel, event: str | None = None) -> str:
    """Return the text of one event; `event` is its name, where it has one."""
    name = f"event: {event}\n" if event else ""
    value = reply.model_dump(mode="json", exclude_unset=True)
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n"


@dataclass(frozen=True, slots=True)
class StreamItem:
    """Text of answer number `opinion`. The last item of an answer has its terminal `event`, or the
    `failure` that ended it. With `event`, `verdict` is the check of the whole answer. `scores`: of
    the tokens of `text`, where they were asked for."""

    opinion: int
    text: str = ""
    event: TokenEvent | None = None
    failure: ApiError | None = None
    verdict: Verdict = Verdict()
    scores: tuple[ScoredToken, ...] = ()

    @property
    def is_last(self) -> bool:
        return self.event is not None or self.failure is not None


class AnswerStream:
    """`await begin()`, iterate once, and `await close()` however it ended.

    Args:
        advice: what each answer begins with. It goes out once the answer has begun; unless all are
            needed, only before the one that begins first.
        all_needed: the first failure ends the stream; otherwise the other answers go on.
    """

    def __init__(
        self, answers: Sequence[Generation], advice: Sequence[str], *, all_needed: bool = False
    ) -> None:
        self._answers = answers
        self._advice = {i: text for i, text in enumerate(advice) if text}
        self._advised: dict[int, str] = {}
        self._all_needed = all_needed
        self._num_left = len(answers)
        self._ready: deque[StreamItem] = deque()
        self._beginning: asyncio.Task[None] | None = None
        # Several answers are read by a task each; a single one is read as its items are asked for.
        self._items: asyncio.Queue[StreamItem] = asyncio.Queue()
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def num_tokens(self) -> int:
        return sum(answer.num_tokens for answer in self._answers)

    async def begin(self) -> None:
        """Wait until an answer has begun, at most HEADERS_AFTER_S.

        Raises:
            ApiError: all of them failed first, or one that is needed; what came first.
        """
        if len(self._answers) > 1:
            self._pumps = [asyncio.create_task(self._pump(i)) for i in range(len(self._answers))]
        self._beginning = asyncio.create_task(self._begin())
        try:
            await asyncio.wait({self._beginning}, timeout=HEADERS_AFTER_S)
            if self._beginning.done():
                self._beginning.result()
                self._refuse()
        except BaseException:
            await self.close()
            raise

    async def _begin(self) -> None:
        while self._num_left:
            await self._read()
            if self._ready[-1].failure is None or self._all_needed:
                return

    def _refuse(self) -> None:
        failures = [item.failure for item in self._ready if item.failure is not None]
        if len(failures) == len(self._ready) and (self._all_needed or not self._num_left):
            raise failures[0]

    def __aiter__(self) -> "AnswerStream":
        return self

    async def __anext__(self) -> StreamItem:
        if self._beginning is not None and not self._beginning.done():
            await self._beginning
        if not self._ready:
            if not self._num_left:
                await self.close()
                raise StopAsyncIteration
            await self._read()
        return self._ready.popleft()

    async def close(self) -> None:
        """Cancel what has not ended."""
        tasks = [*self._pumps, *([self._beginning] if self._beginning else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for answer in self._answers:
            await answer.close()

    async def _read(self) -> None:
        """Queue the next item, after the advice that stands before it."""
        item = await (self._items.get() if self._pumps else _next_item(0, self._answers[0]))
        self._num_left -= item.is_last
        if self._advice and item.failure is None:
            self._advise(item.opinion)
        if item.event is not None and item.opinion in self._advised:
            item = replace(item, verdict=item.verdict.after(self._advised[item.opinion]))
        self._ready.append(item)

    def _advise(self, opinion: int) -> None:
        advice = self._advice.pop(opinion, "")
        if advice:
            self._advised[opinion] = advice
            self._ready.append(StreamItem(opinion, advice))
        if not self._all_needed:
            self._advice.clear()

    async def _pump(self, opinion: int) -> None:
        answer = self._answers[opinion]
        try:
            is_last = False
            while not is_last:
                item = await _next_item(opinion, answer)
                self._items.put_nowait(item)
                is_last = item.is_last
        finally:
            await answer.close()


async def _next_item(opinion: int, answer: Generation) -> StreamItem:
    try:
        event = await answer.next_event()
        if event.finish_reason is None:
            return StreamItem(opinion, event.text, scores=event.scores)
        failure = answer.failure_of(event)
        verdict = Verdict() if failure else answer.sources.verdict()
    except Exception as error:
        log_unexpected(error, "a stream")
        return StreamItem(opinion, failure=internal_error())
    if failure:
        return StreamItem(opinion, event.text, failure=failure)
    end = event if verdict.text is None else complete(event)
    return StreamItem(opinion, event.text, end, verdict=verdict, scores=event.scores)


class EventStream(StreamingResponse):
    """Send the events; close the stream and charge its caller once, however it ends."""

    def __init__(
        self, request: Request, events: AsyncGenerator[str, None], stream: AnswerStream
    ) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._request = request
        self._events = events
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()
            await self._stream.close()
            charge(self._request, self._stream.num_tokens)

    async def stream_response(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        async with commented(send) as send_event:
            async for text in self._events:
                await send_event(text)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def listen_for_disconnect(self, receive: Receive) -> None:
        """Return when the client has left. Ray's `receive` says so by raising that its task was
        cancelled, which would fill the log with a traceback for each client that leaves."""
        try:
            await super().listen_for_disconnect(receive)
        except Exception as error:
            logger.debug("a stream's client has left: %s", type(error).__name__)


def charge(request: Request, num_tokens: int) -> None:
    """Count an answer's tokens, of prompt and answer, against the caller's limit if keys are on."""
    caller = request.scope["state"].get("caller")
    if caller is not None and num_tokens:
        caller.charge(num_tokens)
