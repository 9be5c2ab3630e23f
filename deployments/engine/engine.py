"""Accept requests, run them on the engine's thread, and hand out token events.

Every accepted request gets exactly one terminal event: for end of sequence, length, stop string,
deadline, cancellation, a decoder that raises, or a loop that dies.

    engine = Engine(decoder, EngineLimits(...)); engine.start()
    async for event in engine.generate(request): ...
"""

import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TypeVar

from deployments.engine.decoder import DecoderInfo, EngineLoop, GroupDecoder, StepDecoder
from deployments.engine.errors import (
    EmptyPrompt,
    EngineStopped,
    OutputTooLong,
    PromptTooLong,
    QueueFull,
    UnknownAdapter,
)
from deployments.engine.group_loop import GroupLoop
from deployments.engine.loop import StepLoop, traceback_without_message
from deployments.engine.output import RequestState
from deployments.engine.request import FinishReason, Request, TokenEvent
from deployments.engine.thread import TorchThread

logger = logging.getLogger(__name__)

# The replica is unhealthy after this many failed steps or groups in a row: one bad request should
# not end it, a broken device should.
MAX_FAILURES_IN_A_ROW = 3

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bound what the engine accepts and what one step does."""

    max_rows: int  # of one group; a step decoder has its own rows
    max_waiting: int  # requests in the queue; more are refused
    max_input_tokens: int  # of one prompt
    prefill_tokens: int = 512  # read in one step, by a step decoder
    emit_interval_s: float = 0.0  # a stream's text is emitted at most this often


class Engine:
    """Hold one decoder, one queue and one thread.

    Args:
        thread: runs the loop, and should have loaded the decoder; None for a new one. It ends with
            the engine.
        decoder: only the engine's thread calls it, except for `info` and `decode`. A step decoder
            runs with continuous batching, a group decoder one group after the other.
        on_batch: called on the engine's thread with the number of rows that run, when it changes.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        decoder: StepDecoder | GroupDecoder,
        limits: EngineLimits,
        *,
        on_batch: Callable[[int], None] = lambda num_rows: None,
        clock: Callable[[], float] = time.monotonic,
        thread: TorchThread | None = None,
    ) -> None:
        self.limits = limits
        self._decoder = decoder
        self._clock = clock
        self._runner: EngineLoop
        if isinstance(decoder, StepDecoder):
            self._runner = StepLoop(decoder, limits.prefill_tokens, on_batch, clock)
        else:
            self._runner = GroupLoop(decoder, limits.max_rows, on_batch)
        self._work = threading.Condition()
        # Guarded by _work; not yet with the runner.
        self._arrivals: list[RequestState] = []
        self._taken: list[RequestState] = []  # left _arrivals, not yet with the runner
        self._tasks: list[Callable[[], None]] = []  # guarded by _work
        self._stopped: EngineStopped | None = None  # guarded by _work
        self._thread = thread
        self._running: Future[None] | None = None  # done when the loop has ended

    @property
    def info(self) -> DecoderInfo:
        return self._decoder.info

    @property
    def num_waiting(self) -> int:
        with self._work:
            return sum(not row.is_done for row in (*self._arrivals, *self._runner.waiting))

    @property
    def num_running(self) -> int:
        return sum(not row.is_done for row in self._runner.running)

    def start(self) -> None:
        self._thread = self._thread or TorchThread()
        self._running = self._thread.submit(self._loop)

    def close(self, timeout_s: float = 10.0) -> None:
        """End every request with EngineStopped and wait for the loop, at most `timeout_s`."""
        self._stop(EngineStopped("the engine is shutting down"))
        if self._thread is not None:
            self._thread.close()
        if self._running is not None:
            wait([self._running], timeout_s)

    def check(self) -> None:
        """Raise EngineStopped if this engine can no longer serve."""
        if self._stopped:
            raise self._stopped
        if self._running is None or self._running.done():
            raise EngineStopped("the engine's thread is not running")
        failures = self._runner.num_failures_in_a_row
        if failures >= MAX_FAILURES_IN_A_ROW:
            raise EngineStopped(f"the decoder failed {failures} times in a row")

    async def generate(
        self, request: Request, *, stream: bool = True
    ) -> AsyncGenerator[TokenEvent, None]:
        """Yield the events of one request; only the last has a finish_reason.

        With `stream=False` there is one event, holding the whole text. Closing the generator, or
        cancelling the task that iterates it, cancels the request.

        Raises:
            RequestRefused: nothing was queued.
            EngineStopped: the engine no longer runs.
        """
        row = RequestState(
            request,
            self._decoder.decode,
            stream=stream,
            emit_interval_s=self.limits.emit_interval_s,
            clock=self._clock,
            eos_ids=self.info.eos_ids,
            hidden_ids=self.info.hidden_ids,
        )
        self._accept(row)
        try:
            while True:
                event = await row.events.get()
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            row.finish(FinishReason.CANCELLED)

    def run_between_steps(self, task: Callable[[], ResultT]) -> "Future[ResultT]":
        """Run `task` on the engine's thread before its next step or group.

        This is how to change the decoder (load or evict an adapter) while it serves.

        Raises:
            EngineStopped: the engine no longer runs.
        """
        future: Future[ResultT] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            if self._stopped:
                future.set_exception(self._stopped)
                return
            try:
                future.set_result(task())
            except Exception as error:
                future.set_exception(error)

        with self._work:
            if self._stopped:
                raise self._stopped
            self._tasks.append(run)
            self._work.notify()
        return future

    def _accept(self, row: RequestState) -> None:
        request, info, limits = row.request, self.info, self.limits
        num_prompt_tokens = len(request.prompt_ids)
        if not num_prompt_tokens:
            raise EmptyPrompt
        if num_prompt_tokens > limits.max_input_tokens:
            raise PromptTooLong(num_prompt_tokens, limits.max_input_tokens)
        max_tokens = request.sampling.max_tokens
        if info.num_positions is not None and num_prompt_tokens + max_tokens > info.num_positions:
            raise OutputTooLong(num_prompt_tokens, max_tokens, info.num_positions)
        if request.adapter is not None and request.adapter not in info.adapters:
            raise UnknownAdapter(request.adapter, info.adapters)
        num_waiting = self.num_waiting
        with self._work:
            if self._stopped:
                raise self._stopped
            if num_waiting >= limits.max_waiting:
                raise QueueFull(num_waiting, limits.max_waiting)
            self._arrivals.append(row)
            self._work.notify()

    def _loop(self) -> None:
        try:
            while True:
                with self._work:
                    while not (self._stopped or self._arrivals or self._tasks):
                        if self._runner.has_work:
                            break
                        self._work.wait()
                    if self._stopped:
                        return
                    arrivals, self._arrivals = self._arrivals, []
                    tasks, self._tasks = self._tasks, []
                    self._taken = arrivals
                if tasks:
                    self._runner.drop_cancelled()  # a task may need their adapters' slots
                for task in tasks:
                    task()
                self._runner.step(arrivals)
                self._taken = []
        except BaseException as error:
            logger.error("the engine's loop died: %s", traceback_without_message(error))
            self._stop(EngineStopped(f"the engine's loop died: {type(error).__name__}"))

    def _stop(self, reason: EngineStopped) -> None:
        with self._work:
            self._stopped = self._stopped or reason
            rows = [*self._arrivals, *self._taken, *self._runner.waiting, *self._runner.running]
            tasks, self._tasks = self._tasks, []
            self._arrivals = []
            self._work.notify()
        for row in rows:
            row.finish(FinishReason.ERROR, self._stopped)
        for task in tasks:
            task()
