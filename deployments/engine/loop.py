"""How the engine's thread turns requests into tokens: step by step, or a group at a time.

A runner belongs to the engine's thread. Others may read `waiting` and `running`, which are replaced
whole and never changed.

Which waiting requests decode together next. Pure Python: no tensors, no threads, no clock.

The reference decoder has one active adapter at a time (`set_adapter`), and `generate` takes one
set of sampling parameters for a whole batch. So a group is: one adapter and plain argmax, or a
single request of any other kind. Groups start with the oldest waiting request, whatever its
adapter, so a flood on one adapter delays another adapter's request by at most one group.
"""

import logging
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from deployments.engine.decoder import AsyncTokens, GroupDecoder, StepDecoder
from deployments.engine.output import RequestState
from deployments.engine.request import DecoderFailed, FinishReason, Request, UnknownAdapter
from deployments.engine.scheduler import Scheduler, SchedulerOutput, SequenceState

logger = logging.getLogger(__name__)


class EngineLoop(Protocol):
    """Takes rows in, and takes them one turn further at a time."""

    num_failures_in_a_row: int

    @property
    def waiting(self) -> Sequence[RequestState]: ...

    @property
    def running(self) -> Sequence[RequestState]: ...

    @property
    def has_work(self) -> bool: ...

    def drop_cancelled(self) -> None:
        """Give back what rows that were cancelled hold of the decoder."""

    def turn(self, arrivals: Sequence[RequestState]) -> None:
        """Take the arrivals in, and run one step or one group. A decoder that raises ends the rows
        that it was running, with an error each; the others are served."""


class GroupLoop:
    """One adapter at a time (the reference decoder).

    Args:
        on_batch: called with the number of rows of each group that starts, and with 0 at its end.
    """

    def __init__(
        self, decoder: GroupDecoder, max_rows: int, on_batch: Callable[[int], None]
    ) -> None:
        self.waiting: list[RequestState] = []
        self.running: list[RequestState] = []
        self.num_failures_in_a_row = 0
        self._decoder = decoder
        self._max_rows = max_rows
        self._on_batch = on_batch

    @property
    def has_work(self) -> bool:
        return any(not row.is_done for row in self.waiting)

    def turn(self, arrivals: Sequence[RequestState]) -> None:
        for row in (*self.waiting, *arrivals):
            row.end_if_late()
        waiting = [row for row in (*self.waiting, *arrivals) if not row.is_done]
        chosen = next_group([row.request for row in waiting], self._max_rows)
        self.running = [waiting[position] for position in chosen]
        self.waiting = [row for row in waiting if row not in self.running]
        if self.running:
            self._run(self.running)
        self.running = []

    def drop_cancelled(self) -> None:
        """Between two groups nothing runs."""

    def _run(self, group: list[RequestState]) -> None:
        for row in group:
            row.begin()
        self._on_batch(len(group))
        try:
            self._decoder.set_adapter(group[0].request.adapter)
            self._decoder.generate([row.request for row in group], _GroupSink(group))
            unfinished = [row for row in group if not row.is_done]
            if unfinished:
                raise RuntimeError(f"the decoder left {len(unfinished)} of {len(group)} rows open")
            self.num_failures_in_a_row = 0
        except Exception as error:
            self.num_failures_in_a_row += 1
            _fail(group, error)
        finally:
            self._on_batch(0)


class StepLoop:
    """Continuous batching (a step decoder): rows join and leave between any two steps.

    Args:
        on_batch: called with the number of rows that run whenever it changes.
        clock: seconds, monotonic: what deadlines are on.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        prefill_tokens: int,
        on_batch: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        self.waiting: Sequence[RequestState] = ()
        self.running: Sequence[RequestState] = ()
        self.num_failures_in_a_row = 0
        self._decoder = decoder
        self._scheduler = Scheduler(
            decoder.capacities,
            prefill_tokens=prefill_tokens,
            can_split_prompts=decoder.can_split_prompts,
            prompts_together=decoder.num_prompts_together,
        )
        self._on_batch = on_batch
        self._clock = clock
        self._num_shown = 0
        self._rows: dict[SequenceState, RequestState] = {}
        self._in_flight: deque[tuple[tuple[SequenceState, ...], AsyncTokens]] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._rows or self._in_flight)

    def turn(self, arrivals: Sequence[RequestState]) -> None:
        now = self._clock()
        for row in arrivals:
            if not row.is_done:
                self._rows[self._scheduler.add(row.request, now)] = row
        self.drop_cancelled()
        self._refuse_what_was_evicted()
        plan = self._scheduler.plan(now)
        for job in plan.expired:
            self._rows[job].finish(FinishReason.TIMEOUT)
            self._end(job)
        self._show()
        try:
            self._step(plan)
            if plan.emits:
                self.num_failures_in_a_row = 0
        except Exception as error:
            self.num_failures_in_a_row += 1
            self._end_running(error)
        self._show()
        if not self.has_work:
            self._scheduler.check_invariants()

    def drop_cancelled(self) -> None:
        for job, row in list(self._rows.items()):
            if row.is_done:
                self._end(job)

    def _step(self, plan: SchedulerOutput) -> None:
        for number in plan.released:
            self._decoder.free(number)
        for job in plan.admitted:
            assert job.row is not None, "admitted without a row"
            self._decoder.set_adapter(job.row, job.request.adapter)
            self._rows[job].begin()
        if not plan.is_empty:
            self._in_flight.append((plan.emits, self._decoder.step(plan)))
        ahead = 0 if plan.is_empty else self._decoder.num_steps_ahead
        while len(self._in_flight) > ahead:
            self._deliver(*self._in_flight.popleft())

    def _deliver(self, jobs: Sequence[SequenceState], pending: AsyncTokens) -> None:
        tokens = pending.wait()
        for job in jobs:
            row = self._rows.get(job)
            if row is None or job.row is None:  # it ended while this step was under way
                continue
            row.push(tokens[job.row])
            if row.is_done:
                self._end(job)

    def _end(self, job: SequenceState) -> None:
        """The answer is over: its row and memory are free for the next plan."""
        held_row = job.row if job.holds_row else None
        self._scheduler.finish(job)
        del self._rows[job]
        if held_row is not None:
            self._decoder.free(held_row)

    def _end_running(self, error: Exception) -> None:
        jobs = [job for job in self._rows if job.row is not None]
        _fail([self._rows[job] for job in jobs], error)
        for job in jobs:
            self._scheduler.finish(job)
            del self._rows[job]
        self._in_flight.clear()
        self._decoder.reset()

    def _refuse_what_was_evicted(self) -> None:
        """Requests whose adapter went away while they waited."""
        resident = self._decoder.info.adapters
        for job, row in list(self._rows.items()):
            adapter = job.request.adapter
            if job.row is None and adapter is not None and adapter not in resident:
                row.finish(FinishReason.ERROR, UnknownAdapter(adapter, resident))
                self._end(job)

    def _show(self) -> None:
        self.waiting = tuple(row for job, row in self._rows.items() if job.row is None)
        self.running = tuple(row for job, row in self._rows.items() if job.row is not None)
        if self._scheduler.num_running != self._num_shown:
            self._num_shown = self._scheduler.num_running
            self._on_batch(self._num_shown)


class _GroupSink:
    def __init__(self, rows: Sequence[RequestState]) -> None:
        self._rows = rows

    def push(self, row: int, token_id: int) -> None:
        self._rows[row].push(token_id)

    def is_done(self, row: int) -> bool:
        return self._rows[row].is_done


def _fail(rows: Sequence[RequestState], error: Exception) -> None:
    """End rows with an error. The exception's text may quote its input: its type and place go out,
    and to the log."""
    logger.error("the decoder failed with %d rows: %s", len(rows), place_of(error))
    for row in rows:
        row.finish(
            FinishReason.ERROR,
            DecoderFailed(f"the decoder failed ({type(error).__name__}); try again"),
        )


def place_of(error: BaseException) -> str:
    """Type and traceback of an exception, without its text."""
    return type(error).__name__ + "\n" + "".join(traceback.format_tb(error.__traceback__))


def next_group(waiting: Sequence[Request], max_rows: int) -> list[int]:
    """Positions in `waiting` of the oldest request and of those that may share its batch.

    Args:
        waiting: requests in order of arrival; not changed.
        max_rows: rows of one batch, at least 1.

    Returns:
        ascending positions, between 1 and max_rows of them; empty only when `waiting` is.
    """
    if not waiting:
        return []
    oldest = waiting[0]
    if not oldest.sampling.is_argmax:
        return [0]
    group = [
        position
        for position, request in enumerate(waiting)
        if request.adapter == oldest.adapter and request.sampling.is_argmax
    ]
    return group[:max_rows]
