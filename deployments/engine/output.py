"""One request inside the engine: from tokens to events, and to exactly one terminal event."""

import asyncio
import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence

from deployments.engine.detokenizer import IncrementalDetokenizer
from deployments.engine.request import (
    EngineError,
    ErrorInfo,
    FinishReason,
    Request,
    Timings,
    TokenEvent,
)

logger = logging.getLogger(__name__)

# Endings at which the engine's thread gives out the text that was held back.
_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.TIMEOUT)


class RequestOutputCollector:
    """Events on their way to a reader, on one event loop. At most one waits: what was not read yet
    is joined with what comes next, so a reader that is slow, or that never reads, costs its text
    and no more, and the engine never waits for it.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._latest: TokenEvent | None = None
        self._arrived = asyncio.Event()

    def put(self, event: TokenEvent) -> None:
        """Later events hold the totals so far, so only the texts have to be kept."""
        self._texts.append(event.text)
        self._latest = event
        self._arrived.set()

    async def get(self) -> TokenEvent:
        """All that came since the last call, as one event; waits for it. One reader."""
        await self._arrived.wait()
        event = self._latest
        assert event is not None, "arrived is set, and no event is there"
        if len(self._texts) > 1:
            event = dataclasses.replace(event, text="".join(self._texts))
        self._texts, self._latest = [], None
        self._arrived.clear()
        return event


class RequestState:
    """Created on the event loop, pushed to from the engine's thread.

    Args:
        decode: token ids -> text.
        stream: False for one event with the whole text.
        emit_interval_s: text is given out at most this often, so that fast tokens travel in
            groups; the first token goes out at once. 0: each token by itself.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        request: Request,
        decode: Callable[[Sequence[int]], str],
        *,
        stream: bool,
        emit_interval_s: float,
        clock: Callable[[], float],
        eos_ids: frozenset[int],
    ) -> None:
        self.request = request
        self.events = RequestOutputCollector()
        self.is_done = False
        self._text_stream = IncrementalDetokenizer(decode, request.sampling.stop)
        self._stream = stream
        self._emit_interval_s = emit_interval_s
        self._clock = clock
        self._eos_ids = eos_ids
        self._asyncio_loop = asyncio.get_running_loop()
        self._accepted_at = clock()
        self._emitted_at = self._accepted_at
        self._queue_s: float | None = None
        self._first_token_s: float | None = None
        self._num_tokens = 0
        self._undecoded: list[int] = []
        self._pending_text = ""
        self._finishing = threading.Lock()

    def begin(self) -> None:
        """Its first step is about to run."""
        self._queue_s = self._clock() - self._accepted_at

    def push(self, token_id: int) -> None:
        """The next token. Ignored once the row is done."""
        if self.is_done:
            return
        self._num_tokens += 1
        now = self._clock()
        is_first = self._first_token_s is None
        if is_first:
            self._first_token_s = now - self._accepted_at
        if token_id in self._eos_ids:
            self.finish(FinishReason.STOP)
            return
        self._undecoded.append(token_id)
        is_due = self._stream and (is_first or now - self._emitted_at >= self._emit_interval_s)
        if is_due or self.request.sampling.stop:
            self._decode_pending()
        if self._text_stream.is_stopped:
            self.finish(FinishReason.STOP)
        elif self._num_tokens >= self.request.sampling.max_tokens:
            self.finish(FinishReason.LENGTH)
        elif self._is_late(now):
            self.finish(FinishReason.TIMEOUT)
        elif is_due and self._pending_text:
            self._emit(None)

    def finish(self, reason: FinishReason, error: EngineError | None = None) -> None:
        """Emit the terminal event; later calls do nothing."""
        with self._finishing:
            if self.is_done:
                return
            self.is_done = True
        if reason in _COMPLETE:
            self._decode_pending()
            self._pending_text += self._text_stream.finish()
            if self._text_stream.is_stopped:
                reason = FinishReason.STOP
        self._emit(reason, error.info if error else None)

    def end_if_late(self) -> None:
        """For a row that waits; one that runs looks at each token."""
        if self._is_late(self._clock()):
            self.finish(FinishReason.TIMEOUT)

    def _is_late(self, now: float) -> bool:
        """A step decoder's scheduler ends a late row itself; a group decoder has no scheduler."""
        deadline_s = self.request.deadline_s
        return deadline_s is not None and now - self._accepted_at >= deadline_s

    def _decode_pending(self) -> None:
        if self._undecoded and not self._text_stream.is_stopped:
            self._pending_text += self._text_stream.extend(self._undecoded)
        self._undecoded = []

    def _emit(self, reason: FinishReason | None, error: ErrorInfo | None = None) -> None:
        self._emitted_at = self._clock()
        total_s = self._emitted_at - self._accepted_at if reason else None
        text, self._pending_text = self._pending_text, ""
        event = TokenEvent(
            request_id=self.request.request_id,
            text=text,
            num_tokens=self._num_tokens,
            num_prompt_tokens=len(self.request.prompt_ids),
            timings=Timings(self._queue_s, self._first_token_s, total_s),
            finish_reason=reason,
            error=error,
        )
        try:
            self._asyncio_loop.call_soon_threadsafe(self.events.put, event)
        except RuntimeError:  # the event loop is closed: nobody is left to read
            logger.debug("no reader for request %s", self.request.request_id)
