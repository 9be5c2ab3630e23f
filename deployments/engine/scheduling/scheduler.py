"""Decide which requests get a row, and what one step computes: continuous batching. Pure Python.

No tensors, no threads, no clock: `schedule(now)` is called before each step and decides everything
about it. A row is a part of the KV cache with a fixed capacity in positions. A request is admitted
when a row that holds its prompt and its longest answer is free, so decoding never runs out of
memory. Prompts are read `prefill_tokens` at a time, and fewer deep inside a long one, so that it
does not stall the rows that decode; short prompts do not wait for its end. Between pieces of a very
long one the rows that decode may catch up (pacing.py). Adapters take turns by the service that they
received (fairness.py).

A row whose last token is scheduled is free for the next step, although that token may still be on
its way to the host: the device runs the steps in the order in which they were scheduled.
"""

from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice

from deployments.engine.request import (
    PrefillChunk,
    Prefix,
    Request,
    SchedulerOutput,
    SequenceState,
)
from deployments.engine.scheduling.fairness import GENERATED_TOKEN, PROMPT_TOKEN, TokenCounters
from deployments.engine.scheduling.pacing import LONG_PROMPT, PIECE, Pacing
from deployments.engine.scheduling.prefixes import MIN_TOKENS, PrefixCache

_PATIENCE = 8  # steps
_LOOKED_AT, _MOST_LOOKED_AT = 4, 256  # requests of a tenant, and of a queue, behind one that waits
_MANY = 4  # times `prompts_together`: so many rows that decode lose more by a prefill than it gains
_LONG = 4  # times `prefill_tokens`: a prompt with more to read leaves half of each step to others
# Positions before a token whose attention costs about as much as its products: 1,500 (SmolLM2 with
# eight bits on a CPU, measured) to 15,000 (Llama-3.2-1B, by arithmetic).
_DEPTH = 4096


class Scheduler:
    """Keep the queues, the rows, and the turns of the adapters.

    Args:
        capacities: positions of each row.
        prefill_tokens: prompt tokens that one step reads at most.
        can_split_prompts: whether a prompt may be read over several steps; if not, a prompt longer
            than `prefill_tokens` has a step to itself.
        prompts_together: while more requests wait than rows are free, or many rows decode, this
            many rows are given out at a time, or fewer after _PATIENCE steps: a prefill of a few
            prompts may cost the same as one of a single prompt, and the rows that decode wait for
            each of them.
        prefixes: what rows hold of prompts read before; None: every prompt is read whole. It needs
            `can_split_prompts`.
        pacing: when a piece of a very long prompt may be read beside others; None: in each step.
    """

    def __init__(
        self,
        capacities: Sequence[int],
        *,
        prefill_tokens: int,
        can_split_prompts: bool,
        prompts_together: int = 1,
        prefixes: PrefixCache | None = None,
        pacing: Pacing | None = None,
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
        self._prefixes = prefixes
        self._pacing = pacing
        self._num_held_back = 0  # steps in a row that gave no row out though one was free
        self._queues: dict[str | None, deque[SequenceState]] = {}  # by adapter; no empty ones
        self._running: dict[int, SequenceState] = {}  # by row, in order of admission
        self._ending: list[SequenceState] = []  # scheduled to their end; they hold no row any more
        self._counters = TokenCounters()
        # In the step that is being scheduled:
        self._num_decoding = 0
        self._pieces_left = 0  # of very long prompts, that this step reads beside others

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def sequences(self) -> list[SequenceState]:
        """Return every unfinished sequence: those that run, then those that wait."""
        waiting = (sequence for queue in self._queues.values() for sequence in queue)
        return [*self._ending, *self._running.values(), *waiting]

    def add(self, request: Request, now: float) -> SequenceState:
        """Queue a request.

        Raises:
            ValueError: no row is large enough.
        """
        deadline = None if request.deadline_s is None else now + request.deadline_s
        sequence = SequenceState(request, deadline)
        if sequence.num_positions > max(self.capacities):
            raise ValueError(
                f"request {request.request_id} may need {sequence.num_positions} positions; the "
                f"largest row has {max(self.capacities)}"
            )
        self._counters.arrive(request.adapter, self._queues.keys())
        self._queues.setdefault(request.adapter, deque()).append(sequence)
        if self._counters.should_forget:
            busy = {each.request.adapter for each in self.sequences}
            self._counters.forget(self._queues.keys(), busy)
        return sequence

    def finish(self, sequence: SequenceState) -> None:
        """End a sequence, for whatever reason: its row is free for the next step."""
        if sequence.is_finished:
            return
        sequence.is_finished = True
        if sequence.row is not None:
            if sequence.holds_row:
                del self._running[sequence.row]
                if self._prefixes is not None:
                    self._prefixes.touch(sequence.row)
            else:
                self._ending.remove(sequence)
            sequence.holds_row = False
            return
        self._queues[sequence.request.adapter].remove(sequence)
        self._drop_if_empty(sequence.request.adapter)

    def schedule(self, now: float) -> SchedulerOutput:
        """Decide the next step, and count what it will compute as done."""
        expired = [s for s in self.sequences if s.deadline is not None and now >= s.deadline]
        released = [
            sequence.row for sequence in expired if sequence.row is not None and sequence.holds_row
        ]
        for sequence in expired:
            self.finish(sequence)
        released += self._release()
        decode = [sequence for sequence in self._running.values() if sequence.is_prefilled]
        chunks: list[tuple[SequenceState, PrefillChunk]] = []
        budget = self._prefill_tokens
        self._num_decoding = len(decode)
        if self._pacing is not None:
            self._pacing.begin(now)
            self._pieces_left = int(self._pacing.may_read)
        unread = [sequence for sequence in self._running.values() if not sequence.is_prefilled]
        long = [sequence for sequence in unread if self._is_long(sequence)]
        kept = self._kept(long, budget)
        for sequence in unread:
            if sequence not in long:
                budget -= self._read(sequence, budget - kept, chunks)
        admitted, num_read = self._admit(budget - kept, chunks)
        budget -= num_read
        long += [sequence for sequence in admitted if self._is_paced(sequence)]
        for sequence in long:
            budget -= self._read(sequence, budget, chunks)
        if self._pacing is not None:
            reads_long = any(self._is_paced(sequence) for sequence, _ in chunks)
            self._pacing.end(decodes=bool(decode), reads=bool(chunks), reads_long=reads_long)
        emits = [sequence for sequence, chunk in chunks if chunk.is_last] + decode
        for sequence in emits:
            sequence.num_scheduled += 1
            self._counters.charge(sequence.request.adapter, GENERATED_TOKEN)
        return SchedulerOutput(
            expired=tuple(expired),
            released=tuple(released),
            admitted=tuple(admitted),
            prefill=tuple(chunk for _, chunk in chunks),
            decode=tuple(sequence.row for sequence in decode if sequence.row is not None),
            emits=tuple(emits),
        )

    def extend(self, sequence: SequenceState, num_tokens: int) -> None:
        """Count tokens that the last step made for a sequence beside the one that was scheduled."""
        sequence.num_scheduled += num_tokens
        self._counters.charge(sequence.request.adapter, GENERATED_TOKEN * num_tokens)
        if self._pacing is not None:
            self._pacing.extend(num_tokens / self._num_decoding)

    def _release(self) -> list[int]:
        """Take the rows of the sequences whose last token is scheduled."""
        rows = [row for row, sequence in self._running.items() if sequence.is_fully_scheduled]
        for row in rows:
            sequence = self._running.pop(row)
            sequence.holds_row = False
            self._ending.append(sequence)
            if self._prefixes is not None:
                self._prefixes.touch(row)
        return rows

    def forget_prefixes(self) -> None:
        """Reuse nothing of what the rows hold now."""
        if self._prefixes is not None:
            self._prefixes.clear()

    def _holds_back(self, num_free: int) -> bool:
        """Return whether waiting a few more steps lets several prompts be read at once."""
        num_waiting, num_decoding = self.num_waiting, self._num_decoding
        is_crowded = num_waiting > num_free or num_decoding >= _MANY * self._together
        are_few = 0 < min(num_free, num_waiting) < self._together
        if are_few and is_crowded and num_decoding and self._num_held_back < _PATIENCE:
            self._num_held_back += 1
            return True
        self._num_held_back = 0
        return False

    def _is_long(self, sequence: SequenceState) -> bool:
        """Return whether the prompt leaves a part of each step to others."""
        is_long = self._can_split and sequence.num_unread > _LONG * self._prefill_tokens
        return is_long or self._is_paced(sequence)

    def _is_paced(self, sequence: SequenceState) -> bool:
        """Return whether the prompt is so long that its pieces are spread beside others."""
        return self._would_be_paced(sequence.request, sequence.prefix)

    def _would_be_paced(self, request: Request, prefix: Prefix | None) -> bool:
        """Return whether the prompt would be spread, read behind this prefix."""
        if self._pacing is None or not self._can_split:
            return False
        num_held = 0 if prefix is None else prefix.num_tokens
        return len(request.prompt_ids) - num_held > LONG_PROMPT

    def _kept(self, long: list[SequenceState], budget: int) -> int:
        """Return how much of a step's budget is kept for the prompts that leave a part of it."""
        if not long:
            return 0
        are_paced = all(self._is_paced(each) for each in long)
        return min(budget // 2, self._pieces_left * PIECE) if are_paced else budget // 2

    def _admit(
        self, budget: int, chunks: list[tuple[SequenceState, PrefillChunk]]
    ) -> tuple[list[SequenceState], int]:
        """Give free rows to waiting requests, the least served adapter first, and read their
        prompts, but for those that are spread: they come behind all others.

        Returns those admitted, and how much of the budget reading them takes.
        """
        admitted: list[SequenceState] = []
        whole = budget
        free = [row for row in range(len(self.capacities)) if row not in self._running]
        if self._holds_back(len(free)):
            return [], 0
        blocked: set[str | None] = set()
        while free and budget > 0:
            turn = self._counters.least_served(a for a in self._queues if a not in blocked)
            if not turn:
                break
            largest = max(self.capacities[row] for row in free)
            found = self._next_in(self._queues[turn[0]], largest, chunks)
            if found is None:
                blocked.add(turn[0])
                continue
            sequence, prefix = found
            num_tokens = len(sequence.request.prompt_ids)
            if not self._can_split and num_tokens > budget and chunks:
                break
            fitting = [row for row in free if self.capacities[row] >= sequence.num_positions]
            sequence.row = self._choose_row(fitting, prefix)
            free.remove(sequence.row)
            self._queues[turn[0]].remove(sequence)
            self._drop_if_empty(turn[0])
            self._running[sequence.row] = sequence
            sequence.holds_row = True
            self._begin(sequence, prefix)
            self._counters.charge(turn[0], PROMPT_TOKEN * sequence.num_unread)
            if not self._is_paced(sequence):
                budget -= self._read(sequence, budget, chunks)
            admitted.append(sequence)
        return admitted, whole - budget

    def _next_in(
        self,
        queue: deque[SequenceState],
        largest: int,
        chunks: list[tuple[SequenceState, PrefillChunk]],
    ) -> tuple[SequenceState, Prefix | None] | None:
        """Return the first of a queue that need not wait, and its prefix: `largest` is the largest
        row that is free, and some wait for a prefix, or for the end of other very long prompts.

        So one that waits for its tenant's prefix keeps no other tenant from a row; of a tenant's
        own requests, only the first few are looked at, and the first few very long ones.
        """
        looked_at: Counter[tuple[str | None, bool]] = Counter()
        for sequence in islice(queue, _MOST_LOOKED_AT):
            kind = (sequence.request.tenant, self._would_be_paced(sequence.request, None))
            if sequence.num_positions <= largest and looked_at[kind] < _LOOKED_AT:
                looked_at[kind] += 1
                prefix, is_coming = self._prefix_of(sequence, chunks)
                if not (is_coming or self._is_behind(sequence.request, prefix)):
                    return sequence, prefix
        return None

    def _is_behind(self, request: Request, prefix: Prefix | None) -> bool:
        """Return whether a prompt that is to be spread waits for those before it, which are read
        first: it would keep a row from others for nothing."""
        if not self._would_be_paced(request, prefix):
            return False
        return sum(each.num_unread for each in self._spread) >= self._prefill_tokens

    @property
    def _spread(self) -> list[SequenceState]:
        """Return those that have a row and whose prompts are read piece by piece."""
        running = self._running.values()
        return [each for each in running if not each.is_prefilled and self._is_paced(each)]

    def _prefix_of(
        self, sequence: SequenceState, chunks: list[tuple[SequenceState, PrefillChunk]]
    ) -> tuple[Prefix | None, bool]:
        """Return what a row holds of a prompt, and whether it waits for a row that reads more of
        the same tokens: it would read them beside it. For one that is spread, only others do that
        may be."""
        sampling = sequence.request.sampling
        if self._prefixes is None or (sampling.echo and sampling.logprobs is not None):
            return None, False  # a prompt is scored while it is read
        reading = {chunk.row: chunk.start for _, chunk in chunks}
        slow: list[int | None] = []
        if not self._would_be_paced(sequence.request, None):
            slow = [each.row for each in self._spread]
        prefix, num_coming = self._prefixes.find(sequence.request, reading, slow)
        num_held = 0 if prefix is None else prefix.num_tokens
        return prefix, num_coming - num_held >= MIN_TOKENS

    def _choose_row(self, fitting: list[int], prefix: Prefix | None) -> int:
        smallest = min(self.capacities[row] for row in fitting)
        rows = [row for row in fitting if self.capacities[row] == smallest]
        return rows[0] if self._prefixes is None else self._prefixes.place(rows, prefix)

    def _begin(self, sequence: SequenceState, prefix: Prefix | None) -> None:
        if self._prefixes is None or sequence.row is None:
            return
        if prefix is not None:
            sequence.prefix, sequence.num_prefilled = prefix, prefix.num_tokens
        self._prefixes.begin(sequence.row, sequence)

    def _read(
        self, sequence: SequenceState, budget: int, chunks: list[tuple[SequenceState, PrefillChunk]]
    ) -> int:
        """Schedule the next prompt tokens of `sequence`; returns what they take of the budget: one
        each, or more where others would wait for their attention."""
        is_alone = not self._num_decoding and all(self._is_paced(each) for each, _ in chunks)
        if self._is_paced(sequence) and not is_alone:
            if self._pieces_left == 0:
                return 0
            budget = min(budget, PIECE)
            self._pieces_left -= 1
        start, num_tokens = sequence.num_prefilled, len(sequence.request.prompt_ids)
        cost = 1 + start // _DEPTH if self._can_split and self._num_decoding else 1
        stop = min(num_tokens, start + -(-budget // cost)) if self._can_split else num_tokens
        if stop <= start:
            return 0
        assert sequence.row is not None, (
            f"request {sequence.request.request_id} is read without a row"
        )
        chunks.append((sequence, PrefillChunk(sequence.row, sequence.request, start, stop)))
        sequence.num_prefilled = stop
        return (stop - start) * cost

    def _drop_if_empty(self, adapter: str | None) -> None:
        if not self._queues[adapter]:
            del self._queues[adapter]
            self._counters.leave(adapter)

    def check_invariants(self) -> None:
        """Raise AssertionError, with the numbers, if queues and rows do not agree."""
        for row, sequence in self._running.items():
            limit, prompt = sequence.request.sampling.num_steps, len(sequence.request.prompt_ids)
            assert sequence.row == row, f"row {row} has a sequence of row {sequence.row}"
            assert sequence.holds_row, f"row {row} has a sequence that gave it back"
            assert not sequence.is_finished, f"row {row} holds a finished sequence"
            assert sequence.num_positions <= self.capacities[row], (
                f"row {row}: {sequence.num_positions} positions in {self.capacities[row]}"
            )
            least = 0 if self._is_paced(sequence) else 1
            assert least <= sequence.num_prefilled <= prompt, (
                f"row {row}: {sequence.num_prefilled} of {prompt}"
            )
            assert sequence.num_scheduled <= limit, (
                f"row {row}: {sequence.num_scheduled} of {limit} tokens"
            )
            assert sequence.is_prefilled or not sequence.num_scheduled, (
                f"row {row} decodes half a prompt"
            )
        for sequence in self._ending:
            assert sequence.is_fully_scheduled, f"row {sequence.row} was given back too early"
            assert not sequence.holds_row, f"a sequence holds row {sequence.row}, which is free"
            assert not sequence.is_finished, "a finished sequence is ending"
        for adapter, queue in self._queues.items():
            assert queue, f"an empty queue is kept for adapter {adapter}"
            for sequence in queue:
                assert sequence.request.adapter == adapter, (
                    f"{sequence.request.adapter} in {adapter}'s queue"
                )
                assert sequence.row is None, f"a waiting sequence has row {sequence.row}"
                assert not sequence.is_finished, "a finished sequence waits"
        num_sequences = len(self._ending) + self.num_running + self.num_waiting
        assert num_sequences == len(set(map(id, self.sequences))), (
            f"{num_sequences} sequences, some of them twice"
        )
