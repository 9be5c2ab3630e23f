"""Run the engine's steps with continuous batching: rows join and leave between any two steps.

A loop belongs to the engine's thread.
"""

import logging
import traceback
from collections import deque
from collections.abc import Callable, Sequence

from deployments.engine.decoder import AsyncTokens, DraftDecoder, PrefixDecoder, StepDecoder
from deployments.engine.errors import DecoderFailed, UnknownAdapter
from deployments.engine.request import Drafts, FinishReason, SchedulerOutput, SequenceState
from deployments.engine.row import EngineRow, Outbox
from deployments.engine.scheduling.drafts import Drafter
from deployments.engine.scheduling.pacing import Pacing
from deployments.engine.scheduling.prefixes import PrefixCache
from deployments.engine.scheduling.scheduler import Scheduler

logger = logging.getLogger(__name__)


class StepLoop:
    """Drive a step decoder.

    Args:
        outbox: takes what the steps make.
        clock: seconds, monotonic; deadlines are measured on it.
        reuses_prefixes: whether rows keep what they hold, if the decoder can begin behind it.
        tries_drafts: whether tokens are guessed from the prompt, if the decoder can try them.
        long_prompt_slowdown: others' time per token while very long prompts are read, at most so
            many times what it is without; None: no bound.
    """

    def __init__(
        self,
        decoder: StepDecoder,
        prefill_tokens: int,
        outbox: Outbox,
        clock: Callable[[], float],
        *,
        reuses_prefixes: bool = False,
        tries_drafts: bool = False,
        long_prompt_slowdown: float | None = None,
    ) -> None:
        self.num_failures_in_a_row = 0
        self._decoder = decoder
        self._prefixes: PrefixDecoder | None = None
        if reuses_prefixes and isinstance(decoder, PrefixDecoder) and decoder.can_reuse_prefixes:
            self._prefixes = decoder
        self._drafter: DraftDecoder | None = None
        if tries_drafts and isinstance(decoder, DraftDecoder) and decoder.can_try_drafts:
            self._drafter = decoder
        self._drafts = Drafter(self._drafter)
        self._pacing: Pacing | None = None
        if long_prompt_slowdown is not None:
            self._pacing = Pacing(long_prompt_slowdown, decoder.num_steps_ahead)
        self._scheduler = Scheduler(
            decoder.capacities,
            prefill_tokens=prefill_tokens,
            can_split_prompts=decoder.can_split_prompts,
            prompts_together=decoder.num_prompts_together,
            prefixes=None
            if self._prefixes is None
            else PrefixCache(
                self._prefixes.generation, reuses_answers=self._prefixes.can_reuse_answers
            ),
            pacing=self._pacing,
        )
        self._outbox = outbox
        self._clock = clock
        self._resident = decoder.info.adapters  # that every waiting request was compared with
        self._rows: dict[SequenceState, EngineRow] = {}
        self._in_flight: deque[tuple[tuple[SequenceState, ...], AsyncTokens]] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._rows or self._in_flight)

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    def step(self, arrivals: Sequence[EngineRow]) -> None:
        now = self._clock()
        arrived = [
            (self._scheduler.add(row.request, now), row) for row in arrivals if not row.is_done
        ]
        self._rows.update(arrived)
        self._drop_cancelled()
        self._refuse_evicted(arrived)
        scheduled = self._scheduler.schedule(now)
        for sequence in scheduled.expired:
            self._rows[sequence].finish(FinishReason.TIMEOUT)
            self._end(sequence)
        try:
            self._run(scheduled)
            if scheduled.emits:
                self.num_failures_in_a_row = 0
        except Exception as error:
            self.num_failures_in_a_row += 1
            self._end_running(error)
        if not self.has_work:
            self._scheduler.check_invariants()
            if self._pacing is not None:
                self._pacing.pause(self._clock(), is_idle=True)

    def pause(self) -> None:
        self._drop_cancelled()
        if self._pacing is not None:
            self._pacing.pause(self._clock())

    def _drop_cancelled(self) -> None:
        for sequence, row in list(self._rows.items()):
            if row.is_done:
                self._end(sequence)

    def _run(self, scheduled: SchedulerOutput) -> None:
        for number in scheduled.released:
            self._decoder.free(number)
        for sequence in scheduled.admitted:
            assert sequence.row is not None, "admitted without a row"
            self._decoder.set_adapter(sequence.row, sequence.request.adapter)
            self._rows[sequence].begin(self._reused(sequence))
        self._outbox.flush()  # a caller hears that its request runs before the step has ended
        if self._drafter is not None and self._try_drafts(self._drafter, scheduled):
            return
        if not scheduled.is_empty:
            self._in_flight.append((scheduled.emits, self._decoder.step(scheduled)))
        ahead = 0 if scheduled.is_empty else self._decoder.num_steps_ahead
        while len(self._in_flight) > ahead:
            self._deliver(*self._in_flight.popleft())
        awaited = self._drafter is not None and self._in_flight
        if awaited and self._may_guess_behind(awaited[-1][0]):
            self._deliver(*self._in_flight.popleft())

    def _may_guess_behind(self, sequences: Sequence[SequenceState]) -> bool:
        """Return whether the tokens known so far let others be guessed: then the next step is worth
        waiting for the one that runs."""
        return bool(self._drafts.propose([each for each in sequences if each in self._rows]))

    def _try_drafts(self, decoder: DraftDecoder, scheduled: SchedulerOutput) -> bool:
        """Run a step with guessed tokens, if there are some and no prompt is to be read."""
        if self._in_flight or scheduled.prefill or not scheduled.decode:
            return False
        drafts = self._drafts.propose(scheduled.emits)
        if not drafts:
            return False
        lines: dict[int, list[int]] = {}
        for sequence in scheduled.emits:
            assert sequence.row is not None, "a token without a row"
            lines[sequence.row] = [sequence.answer[-1], *drafts.get(sequence.row, ())]
        found = decoder.step_drafts(lines)
        self._drafts.learn(scheduled.emits, drafts, found)
        for sequence in scheduled.emits:
            assert sequence.row is not None, "a token without a row"
            tokens = found[sequence.row]
            self._scheduler.extend(sequence, len(tokens) - 1)
            if guessed := drafts.get(sequence.row):
                self._rows[sequence].note(Drafts(len(guessed), len(tokens) - 1))
            self._push(sequence, tokens)
        return True

    def _reused(self, sequence: SequenceState) -> int:
        """Let a row begin behind its prefix, if it has one; returns the prefix's tokens."""
        if sequence.prefix is None or sequence.row is None or self._prefixes is None:
            return 0
        self._prefixes.reuse_prefix(sequence.row, *sequence.prefix)
        return sequence.prefix.num_tokens

    def _deliver(self, sequences: Sequence[SequenceState], pending: AsyncTokens) -> None:
        tokens = pending.wait()
        for sequence in sequences:
            row = self._rows.get(sequence)
            if row is None or sequence.row is None:  # it ended while this step ran
                continue
            if sequence.row in pending.failures:
                row.finish(FinishReason.ERROR, pending.failures[sequence.row])
            token = tokens[sequence.row]
            sequence.answer.append(token)
            row.push(token, pending.scores.get(sequence.row, ()))
            if row.is_done:
                self._end(sequence)

    def _push(self, sequence: SequenceState, tokens: Sequence[int]) -> None:
        """Hand on several tokens of one sequence, up to its end."""
        row = self._rows[sequence]
        for token in tokens:
            sequence.answer.append(token)
            row.push(token)
            if row.is_done:
                self._end(sequence)
                return

    def _end(self, sequence: SequenceState) -> None:
        """End an answer: its row is free for the next step."""
        held_row = sequence.row if sequence.holds_row else None
        self._scheduler.finish(sequence)
        self._drafts.forget(sequence)
        del self._rows[sequence]
        if held_row is not None:
            self._decoder.free(held_row)

    def _end_running(self, error: Exception) -> None:
        sequences = [sequence for sequence in self._rows if sequence.row is not None]
        fail([self._rows[sequence] for sequence in sequences], error)
        for sequence in sequences:
            self._scheduler.finish(sequence)
            self._drafts.forget(sequence)
            del self._rows[sequence]
        self._in_flight.clear()
        self._scheduler.forget_prefixes()
        self._decoder.reset()

    def _refuse_evicted(self, arrived: Sequence[tuple[SequenceState, EngineRow]]) -> None:
        """End waiting requests whose adapter was evicted.

        Only arrivals are checked, unless an adapter was loaded or evicted since the last step.
        """
        resident = self._decoder.info.adapters
        looked_at = arrived if resident is self._resident else list(self._rows.items())
        self._resident = resident
        for sequence, row in looked_at:
            adapter = sequence.request.adapter
            is_waiting = sequence.row is None and not row.is_done
            if is_waiting and adapter is not None and adapter not in resident:
                row.finish(FinishReason.ERROR, UnknownAdapter(adapter, resident))
                self._end(sequence)


def fail(rows: Sequence[EngineRow], error: Exception) -> None:
    """End requests with an error. Its text may quote the input, so it is not logged."""
    ids = ", ".join(row.request.request_id for row in rows)
    trace = traceback_without_message(error)
    logger.error("the decoder failed with %d rows (%s): %s", len(rows), ids, trace)
    for row in rows:
        row.finish(
            FinishReason.ERROR,
            DecoderFailed(f"the decoder failed ({type(error).__name__}); try again"),
        )


def traceback_without_message(error: BaseException) -> str:
    """Return the type and the traceback of an exception, without its text."""
    return type(error).__name__ + "\n" + "".join(traceback.format_tb(error.__traceback__))
