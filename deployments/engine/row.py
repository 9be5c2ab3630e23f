"""Count the tokens of one request on the engine's thread, and collect what all of them made."""

import logging
import time
from collections.abc import Callable, Sequence

from deployments.engine.errors import EngineError
from deployments.engine.request import (
    NO_DRAFTS,
    Drafts,
    EndedRow,
    FinishReason,
    Request,
    StartedRow,
    StepOutput,
    TokenScore,
)

logger = logging.getLogger(__name__)


class Outbox:
    """Collect what a step makes, until it is handed on as one StepOutput.

    Args:
        deliver: takes each StepOutput, on the engine's thread.
    """

    def __init__(self, deliver: Callable[[StepOutput], None]) -> None:
        self.output = StepOutput()
        self._deliver = deliver

    def flush(self) -> None:
        """Hand on what was collected, if there is anything."""
        if not self.output.is_empty:
            output, self.output = self.output, StepOutput()
            self._deliver(output)


class EngineRow:
    """Hold one request from its acceptance to its end. Only the engine's thread pushes to it.

    Args:
        number: names the request between the engine and its callers.
        eos_ids: tokens that end an answer.
        clock: seconds, monotonic; the deadline is measured on it, from now on.
        forces_end: an end-of-sequence token in the last place was not the model's choice.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        outbox: Outbox,
        eos_ids: frozenset[int],
        clock: Callable[[], float] = time.monotonic,
        *,
        forces_end: bool = False,
    ) -> None:
        self.number = number
        self.request = request
        self.is_done = False
        self._outbox = outbox
        self._eos_ids, self._forces_end = eos_ids, forces_end
        self._clock = clock
        self._num_tokens = 0
        self._deadline = None if request.deadline_s is None else clock() + request.deadline_s

    def begin(self, num_cached_tokens: int = 0) -> None:
        """Note that its first step is about to run; so many prompt tokens need not be read."""
        self._outbox.output.started.append(StartedRow(self.number, num_cached_tokens))
        if self.request.is_logged:
            self._log("engine_step: the first one", len(self.request.prompt_ids), "prompt tokens")

    def push(self, token_id: int, scores: Sequence[TokenScore] = ()) -> None:
        """Take the next token. Ignored once the request is done.

        Args:
            scores: the token's, where asked for; with `echo`, the prompt's before the first one.
        """
        if self.is_done:
            return
        is_shown = self.request.sampling.max_tokens > 0
        if scores:
            shown = scores if is_shown else scores[:-1]
            self._outbox.output.scores.setdefault(self.number, []).extend(shown)
        if not is_shown:
            self.finish(FinishReason.LENGTH)
            return
        self._num_tokens += 1
        is_last = self._num_tokens >= self.request.sampling.max_tokens
        if token_id in self._eos_ids:
            is_forced = is_last and self._forces_end
            self.finish(FinishReason.LENGTH if is_forced else FinishReason.STOP)
            return
        output = self._outbox.output
        output.numbers.append(self.number)
        output.tokens.append(token_id)
        if is_last:
            self.finish(FinishReason.LENGTH)
        elif self._deadline is not None:
            self.end_if_late()

    def note(self, drafts: Drafts) -> None:
        """Count what was guessed of the tokens that are pushed next."""
        noted = self._outbox.output.drafts
        noted[self.number] = noted.get(self.number, NO_DRAFTS).plus(drafts)

    def finish(self, reason: FinishReason, error: EngineError | None = None) -> None:
        """End the request; later calls do nothing."""
        if not self.is_done:
            self.is_done = True
            info = None if error is None else error.info
            self._outbox.output.ended.append(EndedRow(self.number, reason, self._num_tokens, info))
            if self.request.is_logged:
                self._log(f"engine_end: {reason}", self._num_tokens, "tokens")

    def cancel(self) -> None:
        """End the request without a word: its caller has ended it already. Any thread."""
        self.is_done = True

    def _log(self, event: str, count: int, what: str) -> None:
        extra = {"request_id": self.request.request_id, "event": "engine"}  # no console's
        logger.info("%s, %d %s", event, count, what, extra=extra)

    def end_if_late(self) -> None:
        """End the request if its deadline has passed."""
        if self._deadline is not None and self._clock() >= self._deadline:
            self.finish(FinishReason.TIMEOUT)
