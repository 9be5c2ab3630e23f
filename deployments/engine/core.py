"""Run a decoder on a thread of its own: requests come in by number, and each step's tokens go out.

The thread never waits for anybody: what a step made is one StepOutput for all requests. Engine
(engine.py) turns it into text, on an event loop of this process or of another one.
"""

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol, TypeVar

from deployments.engine.decoder import DecoderInfo, EngineLoop, GroupDecoder, StepDecoder
from deployments.engine.errors import EngineStopped
from deployments.engine.request import Request, StepOutput
from deployments.engine.row import EngineRow, Outbox
from deployments.engine.scheduling.group_loop import GroupLoop
from deployments.engine.scheduling.loop import StepLoop, traceback_without_message
from deployments.engine.thread import TorchThread

logger = logging.getLogger(__name__)

# The replica is unhealthy after this many failed steps or groups in a row: one bad request should
# not end it, a broken device should.
MAX_FAILURES_IN_A_ROW = 3
# Seconds for one task between two steps, on a device that does not answer any more. Preparing a
# GPU's kernels and graphs takes minutes.
TASK_TIMEOUT_S = 900.0

# Grammars that are compiled at the same time, on half of the cores at most.
_MOST_COMPILERS = 8

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bound what the engine accepts and what one step does.

    max_events_per_s: of all streams together; each carries more tokens where there are many.
    reuses_prefixes: rows keep what they hold for prompts that begin with it, where the decoder can.
    tries_drafts: where few rows run, tokens are guessed from the prompt, where the decoder can.
    long_prompt_slowdown: of others' time per token while a step decoder reads very long prompts;
        None: no bound.
    step_timeout_s: a step that takes longer counts as stuck; a task between two steps may take
        longer, since it may compile kernels.
    """

    max_rows: int  # of one group; a step decoder has its own rows
    max_waiting: int  # requests in the queue; more are refused
    max_input_tokens: int  # of one prompt
    prefill_tokens: int = 512  # read in one step, by a step decoder
    reuses_prefixes: bool = False
    tries_drafts: bool = False
    long_prompt_slowdown: float | None = None
    emit_interval_s: float = 0.0  # a stream's text is emitted at most this often
    max_events_per_s: float = math.inf
    emits_together: bool = False  # all streams at the same moments
    step_timeout_s: float = 60.0


@dataclass(slots=True)
class Pulse:
    """Hold what the engine's thread does, and since when. Replaced as a whole, read anywhere."""

    doing: str  # "idle", "step" or "task"
    since: float  # seconds, monotonic

    def check(self, now: float, step_timeout_s: float) -> None:
        """Raise EngineStopped if a step takes longer than `step_timeout_s`, or a task between two
        steps longer than TASK_TIMEOUT_S."""
        limits = {"step": step_timeout_s, "task": max(step_timeout_s, TASK_TIMEOUT_S)}
        limit_s = limits.get(self.doing, math.inf)
        if now - self.since > limit_s:
            raise EngineStopped(
                f"a {self.doing} has not ended for {now - self.since:.0f} s (limit {limit_s:g} s)"
            )


class EngineCore(Protocol):
    """Define what Engine asks of the part that runs the decoder, here or in another process."""

    @property
    def info(self) -> DecoderInfo: ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for (detokenizer.py)."""

    def prepare(self, grammar: str) -> "Future[None]":
        """Compile what an answer is to keep to, beside the steps; raises EngineStopped. The future
        raises InvalidGrammar."""

    def listen(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[StepOutput], None],
        ended: Callable[[EngineStopped], None],
    ) -> None:
        """Call `take` on `loop` with what each step makes, from now on, and `ended` last."""

    def add(self, number: int, request: Request) -> None:
        """Queue a request; raises EngineStopped."""

    def abort(self, number: int) -> None:
        """Give back the row of a request that its caller has ended."""

    def run_between_steps(self, task: Callable[[], ResultT]) -> "Future[ResultT]":
        """Run a task that changes the decoder before the next step; raises EngineStopped."""

    def check(self) -> None:
        """Raise EngineStopped if it can no longer serve."""

    def close(self, timeout_s: float) -> None:
        """Stop, and wait for the thread or process at most `timeout_s`."""


class ThreadCore:
    """Implement EngineCore with a thread of this process.

    Args:
        decoder: only the core's thread calls it, except for `info` and `decode`. A step decoder
            runs with continuous batching, a group decoder one group after the other.
        clock: seconds, monotonic.
        thread: runs the loop, and should have loaded the decoder; None for a new one. It ends with
            the core.
        deliver: takes each StepOutput on the thread, in place of a listener.
    """

    def __init__(
        self,
        decoder: StepDecoder | GroupDecoder,
        limits: EngineLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        thread: TorchThread | None = None,
        deliver: Callable[[StepOutput], None] | None = None,
    ) -> None:
        self._decoder = decoder
        self._limits = limits
        self._clock = clock
        self._deliver = deliver or self._deliver_on_loop
        self._outbox = Outbox(self._sort_out)
        self._runner: EngineLoop
        if isinstance(decoder, StepDecoder):
            self._runner = StepLoop(
                decoder,
                limits.prefill_tokens,
                self._outbox,
                clock,
                reuses_prefixes=limits.reuses_prefixes,
                tries_drafts=limits.tries_drafts,
                long_prompt_slowdown=limits.long_prompt_slowdown,
            )
        else:
            self._runner = GroupLoop(decoder, limits.max_rows, self._outbox)
        self._work = threading.Condition()
        # Guarded by _work; not yet with the runner.
        self._arrivals: list[EngineRow] = []
        self._tasks: list[Callable[[], None]] = []  # guarded by _work
        self._stopped: EngineStopped | None = None  # guarded by _work
        self._rows: dict[int, EngineRow] = {}  # all that have not ended
        self._thread = thread
        self._running: Future[None] | None = None  # done when the loop has ended
        self._pulse = Pulse("idle", time.monotonic())
        self._listener: _Listener | None = None
        num_compilers = max(1, min(_MOST_COMPILERS, len(os.sched_getaffinity(0)) // 2))
        self._compilers = ThreadPoolExecutor(num_compilers, thread_name_prefix="grammars")

    @property
    def info(self) -> DecoderInfo:
        return self._decoder.info

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._decoder.decode(token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self._decoder.token_bytes(token_id)

    def prepare(self, grammar: str) -> "Future[None]":
        def compile_grammar() -> None:
            if self._stopped:  # while it waited
                raise self._stopped
            self._decoder.grammars.prepare(grammar)

        with self._work:  # `close` ends the compiler after it has stopped the engine
            if self._stopped:
                raise self._stopped
            return self._compilers.submit(compile_grammar)

    def start(self) -> None:
        self._thread = self._thread or TorchThread()
        self._running = self._thread.submit(self._loop)

    def listen(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[StepOutput], None],
        ended: Callable[[EngineStopped], None],
    ) -> None:
        self._listener = _Listener(loop, take, ended)

    def add(self, number: int, request: Request) -> None:
        row = EngineRow(
            number,
            request,
            self._outbox,
            self.info.eos_ids,
            self._clock,
            forces_end=self.info.forces_end,
        )
        with self._work:
            if self._stopped:
                raise self._stopped
            self._rows[number] = row
            self._arrivals.append(row)
            self._work.notify()

    def abort(self, number: int) -> None:
        row = self._rows.pop(number, None)
        if row is not None:
            row.cancel()

    def run_between_steps(self, task: Callable[[], ResultT]) -> "Future[ResultT]":
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

    @property
    def num_queued(self) -> int:
        """Return the requests without a row, as the thread sees it at this moment."""
        return len(self._arrivals) + self._runner.num_waiting

    def check(self) -> None:
        if self._stopped:
            raise self._stopped
        if self._running is None or self._running.done():
            raise EngineStopped("the engine's thread is not running")
        failures = self._runner.num_failures_in_a_row
        if failures >= MAX_FAILURES_IN_A_ROW:
            raise EngineStopped(f"the decoder failed {failures} times in a row")
        self._pulse.check(time.monotonic(), self._limits.step_timeout_s)

    @property
    def pulse(self) -> Pulse:
        """Return what the thread does at this moment."""
        return self._pulse

    def close(self, timeout_s: float = 10.0) -> None:
        self._stop(EngineStopped("the engine is shutting down"))
        # What waits for it ends with EngineStopped: a cancelled future would look as if its caller
        # had left, who would hear nothing.
        self._compilers.shutdown(wait=False)
        if self._thread is not None:
            self._thread.close()
        if self._running is not None:
            wait([self._running], timeout_s)

    def _loop(self) -> None:
        try:
            while True:
                with self._work:
                    while not (self._stopped or self._arrivals or self._tasks):
                        if self._runner.has_work:
                            break
                        self._pulse = Pulse("idle", time.monotonic())
                        self._work.wait()
                    if self._stopped:
                        return
                    arrivals, self._arrivals = self._arrivals, []
                    tasks, self._tasks = self._tasks, []
                if tasks:
                    self._runner.pause()  # a task may need their adapters' slots
                for task in tasks:
                    self._pulse = Pulse("task", time.monotonic())
                    task()
                self._pulse = Pulse("step", time.monotonic())
                self._runner.step(arrivals)
                self._outbox.flush()
        except BaseException as error:
            logger.error("the engine's loop died: %s", traceback_without_message(error))
            self._stop(EngineStopped(f"the engine's loop died: {type(error).__name__}"))

    def _sort_out(self, output: StepOutput) -> None:
        for row in output.ended:
            self._rows.pop(row.number, None)
        self._deliver(output)

    def _deliver_on_loop(self, output: StepOutput) -> None:
        if self._listener is not None:
            self._listener.call(self._listener.take, output)

    def _stop(self, reason: EngineStopped) -> None:
        with self._work:
            self._stopped = self._stopped or reason
            tasks, self._tasks = self._tasks, []
            self._arrivals = []
            self._work.notify()
        for row in list(self._rows.values()):
            row.cancel()
        for task in tasks:
            task()
        if self._listener is not None:
            self._listener.call(self._listener.ended, self._stopped)


@dataclass(frozen=True, slots=True)
class _Listener:
    loop: asyncio.AbstractEventLoop
    take: Callable[[StepOutput], None]
    ended: Callable[[EngineStopped], None]

    def call(self, function: Callable[..., None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: no reader is left
            self.loop.call_soon_threadsafe(function, argument)
