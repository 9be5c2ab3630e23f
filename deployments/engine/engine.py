"""The engine: accepts requests, runs groups on a thread of its own, hands out token events.

Every accepted request gets exactly one terminal event, whatever happens: end of sequence, length,
stop string, cancellation, a decoder that raises, or a loop that dies.

    engine = Engine(decoder, EngineLimits(...)); engine.start()
    async for event in engine.generate(request): ...
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from deployments.engine.decoder import DecoderInfo, GroupDecoder
from deployments.engine.detokenizer import TextStream
from deployments.engine.group_scheduler import next_group
from deployments.engine.request import (
    DecoderFailed,
    EngineError,
    EngineStopped,
    ErrorInfo,
    FinishReason,
    OutputTooLong,
    PromptTooLong,
    QueueFull,
    Request,
    Timings,
    TokenEvent,
    UnknownAdapter,
)

logger = logging.getLogger(__name__)

# After this many groups in a row that the decoder failed, the replica counts as unhealthy: one bad
# request should not end it, a broken device should.
MAX_FAILURES_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class EngineLimits:
    max_rows: int
    max_waiting: int
    max_input_tokens: int


class Engine:
    """One decoder, one queue, one thread.

    Args:
        decoder: runs the groups; only the engine's thread calls `set_adapter` and `generate`.
        on_group: called on the engine's thread with the number of rows of each group that starts,
            and with 0 when it ends.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        decoder: GroupDecoder,
        limits: EngineLimits,
        *,
        on_group: Callable[[int], None] = lambda num_rows: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self._decoder = decoder
        self._on_group = on_group
        self._clock = clock
        self._work = threading.Condition()
        self._waiting: list[_Row] = []  # guarded by _work; order of arrival
        self._running: list[_Row] = []  # guarded by _work; the group being decoded
        self._stopped: EngineStopped | None = None  # guarded by _work
        self._num_failures_in_a_row = 0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)

    @property
    def info(self) -> DecoderInfo:
        return self._decoder.info

    @property
    def num_waiting(self) -> int:
        with self._work:
            return len(self._waiting)

    @property
    def num_running(self) -> int:
        with self._work:
            return len(self._running)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """End every request with EngineStopped and wait for the thread, at most `timeout_s`."""
        self._stop(EngineStopped("the engine is shutting down"))
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def check(self) -> None:
        """Raises EngineStopped when this engine cannot serve any more."""
        if self._stopped:
            raise self._stopped
        if not self._thread.is_alive():
            raise EngineStopped("the engine's thread is not running")
        if self._num_failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise EngineStopped(f"the decoder failed {self._num_failures_in_a_row} times in a row")

    async def generate(
        self, request: Request, *, stream: bool = True
    ) -> AsyncGenerator[TokenEvent, None]:
        """Events of one request; the last, and only the last, has a finish_reason.

        With `stream=False` there is one event, holding the whole text. Closing the generator, or
        cancelling the task that iterates it, cancels the request.

        Raises:
            RequestRefused: before anything was queued.
            EngineStopped: the engine no longer runs.
        """
        row = _Row(
            request,
            TextStream(self._decoder.decode, request.sampling.stop),
            stream=stream,
            clock=self._clock,
            eos_ids=self.info.eos_ids,
        )
        self._accept(row)
        try:
            while True:
                event = await row.events.get()
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self._cancel(row)

    def _accept(self, row: "_Row") -> None:
        request, info, limits = row.request, self.info, self.limits
        num_prompt_tokens = len(request.prompt_ids)
        if num_prompt_tokens > limits.max_input_tokens:
            raise PromptTooLong(num_prompt_tokens, limits.max_input_tokens)
        max_tokens = request.sampling.max_tokens
        if info.num_positions is not None and num_prompt_tokens + max_tokens > info.num_positions:
            raise OutputTooLong(num_prompt_tokens, max_tokens, info.num_positions)
        if request.adapter is not None and request.adapter not in info.adapters:
            raise UnknownAdapter(request.adapter, info.adapters)
        with self._work:
            if self._stopped:
                raise self._stopped
            if len(self._waiting) >= limits.max_waiting:
                raise QueueFull(len(self._waiting), limits.max_waiting)
            self._waiting.append(row)
            self._work.notify()

    def _cancel(self, row: "_Row") -> None:
        with self._work:
            if row in self._waiting:
                self._waiting.remove(row)
        row.finish(FinishReason.CANCELLED)

    def _loop(self) -> None:
        try:
            while True:
                with self._work:
                    while not self._waiting and not self._stopped:
                        self._work.wait()
                    if self._stopped:
                        return
                    chosen = next_group([r.request for r in self._waiting], self.limits.max_rows)
                    group = [self._waiting[position] for position in chosen]
                    self._waiting = [r for r in self._waiting if r not in group]
                    self._running = group
                self._run(group)
                with self._work:
                    self._running = []
        except BaseException as error:
            logger.exception("the engine's loop died")
            self._stop(EngineStopped(f"the engine's loop died: {type(error).__name__}"))

    def _run(self, group: list["_Row"]) -> None:
        for row in group:
            row.begin()
        self._on_group(len(group))
        try:
            self._decoder.set_adapter(group[0].request.adapter)
            self._decoder.generate([row.request for row in group], _GroupSink(group))
            unfinished = [row for row in group if not row.is_done]
            if unfinished:
                raise RuntimeError(f"the decoder left {len(unfinished)} of {len(group)} rows open")
            self._num_failures_in_a_row = 0
        except Exception as error:
            # The exception's text may quote its input, so only the type is passed on.
            self._num_failures_in_a_row += 1
            logger.exception("the decoder failed on a group of %d", len(group))
            for row in group:
                row.finish(
                    FinishReason.ERROR,
                    DecoderFailed(f"the decoder failed ({type(error).__name__}); try again"),
                )
        finally:
            self._on_group(0)

    def _stop(self, reason: EngineStopped) -> None:
        with self._work:
            self._stopped = self._stopped or reason
            rows = self._waiting + self._running
            self._waiting, self._running = [], []
            self._work.notify()
        for row in rows:
            row.finish(FinishReason.ERROR, self._stopped)


class _GroupSink:
    def __init__(self, rows: Sequence["_Row"]) -> None:
        self._rows = rows

    def push(self, row: int, token_id: int) -> None:
        self._rows[row].push(token_id)

    def is_done(self, row: int) -> bool:
        return self._rows[row].is_done


class _Row:
    """One request in the engine. Created on the event loop, pushed to from the engine's thread."""

    def __init__(
        self,
        request: Request,
        text_stream: TextStream,
        *,
        stream: bool,
        clock: Callable[[], float],
        eos_ids: frozenset[int],
    ) -> None:
        self.request = request
        self.events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._text_stream = text_stream
        self._stream = stream
        self._clock = clock
        self._eos_ids = eos_ids
        self._asyncio_loop = asyncio.get_running_loop()
        self._accepted_at = clock()
        self._queue_s: float | None = None
        self._first_token_s: float | None = None
        self._num_tokens = 0
        self._pending_text = ""
        self._finishing = threading.Lock()
        self.is_done = False

    def begin(self) -> None:
        self._queue_s = self._clock() - self._accepted_at

    def push(self, token_id: int) -> None:
        if self.is_done:
            return
        self._num_tokens += 1
        if self._first_token_s is None:
            self._first_token_s = self._clock() - self._accepted_at
        if token_id in self._eos_ids:
            self.finish(FinishReason.STOP)
            return
        self._pending_text += self._text_stream.push(token_id)
        if self._text_stream.is_stopped:
            self.finish(FinishReason.STOP)
        elif self._num_tokens >= self.request.sampling.max_tokens:
            self.finish(FinishReason.LENGTH)
        elif self._stream and self._pending_text:
            self._emit(None)

    def finish(self, reason: FinishReason, error: EngineError | None = None) -> None:
        """Emit the terminal event; later calls do nothing."""
        with self._finishing:
            if self.is_done:
                return
            self.is_done = True
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._pending_text += self._text_stream.finish()
            if self._text_stream.is_stopped:
                reason = FinishReason.STOP
        self._emit(reason, error.info if error else None)

    def _emit(self, reason: FinishReason | None, error: ErrorInfo | None = None) -> None:
        total_s = self._clock() - self._accepted_at if reason else None
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
            self._asyncio_loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the event loop is closed: nobody is left to read
            logger.debug("no reader for request %s", self.request.request_id)
