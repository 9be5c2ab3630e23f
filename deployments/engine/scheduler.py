"""Continuous batching: which requests get a row, and what one step computes. Pure Python.

No tensors, no threads, no clock: `plan(now)` is called before each step and says everything about
it. A row is a slot of the key/value memory with a fixed capacity in positions; a request is
admitted when a row that holds its prompt and its longest answer is free, so decoding never runs
out of memory. Prompts are read `prefill_tokens` at a time, so that a long one does not stall the
rows that decode. Adapters take turns by the service they got (fairness.py).

A row whose last token is in a plan is free for the next plan, although that token may still be on
its way to the host: what the device does is in the order of the plans.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from deployments.engine.fairness import GENERATED_TOKEN, PROMPT_TOKEN, TokenCounters
from deployments.engine.request import Request

_PATIENCE = 8  # steps


@dataclass(slots=True, eq=False)
class SequenceState:
    """One request on its way. The scheduler alone writes to it.

    `row` stays after the job has let go of it: its tokens come under that number.
    """

    request: Request
    deadline: float | None  # on the clock of `plan`
    row: int | None = None
    holds_row: bool = False
    num_prefilled: int = 0  # prompt tokens in the plans so far
    num_planned: int = 0  # answer tokens in the plans so far
    is_finished: bool = False

    @property
    def num_positions(self) -> int:
        """Positions that the whole answer may need."""
        return len(self.request.prompt_ids) + self.request.sampling.max_tokens

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == len(self.request.prompt_ids)

    @property
    def is_planned(self) -> bool:
        """Every token that it may have is in a plan."""
        return self.is_prefilled and self.num_planned == self.request.sampling.max_tokens


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens [start, stop) of a row, read in one step. Half-open."""

    row: int
    request: Request
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        return self.stop == len(self.request.prompt_ids)


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step. `emits` get one token each, in this order: last chunks, then `decode`."""

    expired: tuple[SequenceState, ...]  # their deadline passed; their rows are free already
    released: tuple[int, ...]  # rows of the expired, and those whose last token is planned
    admitted: tuple[SequenceState, ...]
    prefill: tuple[PrefillChunk, ...]
    decode: tuple[int, ...]  # rows
    emits: tuple[SequenceState, ...]

    @property
    def is_empty(self) -> bool:
        return not self.prefill and not self.decode


class Scheduler:
    """Queues, rows and turns.

    Args:
        capacities: positions of each row.
        prefill_tokens: prompt tokens that one step reads at most.
        can_split_prompts: whether a prompt may be read over several steps; without, a prompt
            longer than `prefill_tokens` has a step to itself.
        prompts_together: while more requests wait than rows are free, rows are given out so many
            at a time, or after _PATIENCE steps: where a prefill costs the same for a few prompts.
    """

    def __init__(
        self,
        capacities: Sequence[int],
        *,
        prefill_tokens: int,
        can_split_prompts: bool,
        prompts_together: int = 1,
    ) -> None:
        if not capacities or min(capacities) < 1 or prefill_tokens < 1:
            raise ValueError(
                f"rows of {list(capacities)} positions, {prefill_tokens} prompt tokens a step: "
                "at least one row, and all numbers at least 1"
            )
        self.capacities = tuple(capacities)
        self._prefill_tokens = prefill_tokens
        self._can_split = can_split_prompts
        self._together = prompts_together
        self._num_held_back = 0  # steps in a row that gave no row out though one was free
        self._queues: dict[str | None, deque[SequenceState]] = {}  # by adapter; no empty ones
        self._running: dict[int, SequenceState] = {}  # by row, in order of admission
        self._ending: list[SequenceState] = []  # planned to their end; they hold no row any more
        self._counters = TokenCounters()

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def jobs(self) -> list[SequenceState]:
        """Every unfinished job: those that run, then those that wait."""
        waiting = (job for queue in self._queues.values() for job in queue)
        return [*self._ending, *self._running.values(), *waiting]

    def add(self, request: Request, now: float) -> SequenceState:
        """Queue a request.

        Raises:
            ValueError: no row could ever hold it.
        """
        deadline = None if request.deadline_s is None else now + request.deadline_s
        job = SequenceState(request, deadline)
        if job.num_positions > max(self.capacities):
            raise ValueError(
                f"request {request.request_id} may need {job.num_positions} positions; the "
                f"largest row has {max(self.capacities)}"
            )
        self._counters.arrive(request.adapter, self._queues.keys())
        self._queues.setdefault(request.adapter, deque()).append(job)
        return job

    def finish(self, job: SequenceState) -> None:
        """The job ended, for whatever reason: its row is free for the next plan."""
        if job.is_finished:
            return
        job.is_finished = True
        if job.row is not None:
            if job.holds_row:
                del self._running[job.row]
            else:
                self._ending.remove(job)
            job.holds_row = False
            return
        self._queues[job.request.adapter].remove(job)
        self._drop_if_empty(job.request.adapter)

    def plan(self, now: float) -> SchedulerOutput:
        """Decide the next step, and count what it will do as done."""
        expired = [j for j in self.jobs if j.deadline is not None and now >= j.deadline]
        released = [job.row for job in expired if job.row is not None and job.holds_row]
        for job in expired:
            self.finish(job)
        released += self._release()
        decode = [job for job in self._running.values() if job.is_prefilled]
        chunks: list[tuple[SequenceState, PrefillChunk]] = []
        budget = self._prefill_tokens
        for job in self._running.values():
            if not job.is_prefilled:
                budget -= self._read(job, budget, chunks)
        admitted = self._admit(budget, chunks)
        emits = [job for job, chunk in chunks if chunk.is_last] + decode
        for job in emits:
            job.num_planned += 1
            self._counters.charge(job.request.adapter, GENERATED_TOKEN)
        return SchedulerOutput(
            expired=tuple(expired),
            released=tuple(released),
            admitted=tuple(admitted),
            prefill=tuple(chunk for _, chunk in chunks),
            decode=tuple(job.row for job in decode if job.row is not None),
            emits=tuple(emits),
        )

    def _release(self) -> list[int]:
        """Take the rows of those whose last token is in a plan already."""
        rows = [row for row, job in self._running.items() if job.is_planned]
        for row in rows:
            job = self._running.pop(row)
            job.holds_row = False
            self._ending.append(job)
        return rows

    def _holds_back(self, num_free: int) -> bool:
        """Whether a few more steps of patience let several prompts be read at once."""
        is_crowded = 0 < num_free < min(self._together, self.num_waiting)
        is_decoding = num_free < len(self.capacities)
        if is_crowded and is_decoding and self._num_held_back < _PATIENCE:
            self._num_held_back += 1
            return True
        self._num_held_back = 0
        return False

    def _admit(
        self, budget: int, chunks: list[tuple[SequenceState, PrefillChunk]]
    ) -> list[SequenceState]:
        """Give free rows to waiting requests, the least served adapter first."""
        admitted: list[SequenceState] = []
        free = [row for row in range(len(self.capacities)) if row not in self._running]
        if self._holds_back(len(free)):
            return []
        blocked: set[str | None] = set()
        while free and budget > 0:
            turn = self._counters.least_served(a for a in self._queues if a not in blocked)
            if not turn:
                break
            job = self._queues[turn[0]][0]
            num_tokens = len(job.request.prompt_ids)
            if not self._can_split and num_tokens > budget and chunks:
                break
            fitting = [row for row in free if self.capacities[row] >= job.num_positions]
            if not fitting:
                # It waits for a large row, so nobody else may take one meanwhile.
                blocked.add(turn[0])
                free = [row for row in free if self.capacities[row] < job.num_positions]
                continue
            job.row = min(fitting, key=lambda row: (self.capacities[row], row))
            free.remove(job.row)
            self._queues[turn[0]].popleft()
            self._drop_if_empty(turn[0])
            self._running[job.row] = job
            job.holds_row = True
            self._counters.charge(turn[0], PROMPT_TOKEN * num_tokens)
            budget -= self._read(job, budget, chunks)
            admitted.append(job)
        return admitted

    def _read(
        self, job: SequenceState, budget: int, chunks: list[tuple[SequenceState, PrefillChunk]]
    ) -> int:
        """Plan the next prompt tokens of `job`; returns how many."""
        start, num_tokens = job.num_prefilled, len(job.request.prompt_ids)
        stop = min(num_tokens, start + budget) if self._can_split else num_tokens
        if stop <= start:
            return 0
        assert job.row is not None, f"request {job.request.request_id} is read without a row"
        chunks.append((job, PrefillChunk(job.row, job.request, start, stop)))
        job.num_prefilled = stop
        return stop - start

    def _drop_if_empty(self, adapter: str | None) -> None:
        if not self._queues[adapter]:
            del self._queues[adapter]
            self._counters.leave(adapter)

    def check_invariants(self) -> None:
        """Raises AssertionError, with the numbers, when the books do not balance."""
        for row, job in self._running.items():
            limit, prompt = job.request.sampling.max_tokens, len(job.request.prompt_ids)
            assert job.row == row, f"row {row} has a job of row {job.row}"
            assert job.holds_row, f"row {row} has a job that let go of it"
            assert not job.is_finished, f"row {row} holds a finished job"
            assert job.num_positions <= self.capacities[row], (
                f"row {row}: {job.num_positions} positions in {self.capacities[row]}"
            )
            assert 0 < job.num_prefilled <= prompt, f"row {row}: {job.num_prefilled} of {prompt}"
            assert job.num_planned <= limit, f"row {row}: {job.num_planned} of {limit} tokens"
            assert job.is_prefilled or not job.num_planned, f"row {row} decodes half a prompt"
        for job in self._ending:
            assert job.is_planned, f"row {job.row} was let go of too early"
            assert not job.holds_row, f"a job holds row {job.row}, which is free"
            assert not job.is_finished, "a finished job is ending"
        for adapter, queue in self._queues.items():
            assert queue, f"an empty queue is kept for adapter {adapter}"
            for job in queue:
                assert job.request.adapter == adapter, f"{job.request.adapter} in {adapter}'s queue"
                assert job.row is None, f"a waiting job has row {job.row}"
                assert not job.is_finished, "a finished job waits"
        num_jobs = len(self._ending) + self.num_running + self.num_waiting
        assert num_jobs == len(set(map(id, self.jobs))), f"{num_jobs} jobs, some of them twice"
