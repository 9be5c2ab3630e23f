"""One answer from the backend: its events with a deadline, exactly one of them terminal, recorded
and counted once however it ends."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deployments.api.errors import ApiError, engine_error
from deployments.api.grounding import Sources, Verdict
from deployments.engine.request import ErrorInfo, FinishReason, ScoredToken, Timings, TokenEvent
from deployments.messages import GRACE_S, Backend, GenerateRequest, Outcome
from deployments.observe import tracing
from deployments.observe.records import log_request

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

# Outcomes of answers that went as they should.
_GOOD = frozenset(map(str, (FinishReason.STOP, FinishReason.LENGTH, FinishReason.LOOP)))


@dataclass(frozen=True, slots=True)
class Completed:
    """A whole answer: its text, its terminal event, and the check of the text (already heeded)."""

    text: str
    event: TokenEvent
    verdict: Verdict = Verdict()

    def after(self, prefix: str) -> "Completed":
        """Return the answer with `prefix` before it."""
        return Completed(prefix + self.text, self.event, self.verdict.after(prefix))


class Generation:
    """Read the events of `call` one by one; `close` must follow, however that ended.

    Args:
        sources: the passages that the answer stands on.
        specialty, confidence: for the metrics.
        explain: what a client is told of an engine's error.
    """

    def __init__(
        self,
        backend: Backend,
        call: GenerateRequest,
        sources: Sources,
        specialty: str | None,
        confidence: float | None,
        explain: Callable[[ErrorInfo], ApiError] = engine_error,
    ) -> None:
        self._backend = backend
        self._explain = explain
        self._call = call
        self.sources = sources
        self._specialty = specialty
        self._confidence = confidence
        self._events: AsyncGenerator[TokenEvent, None] | None = None
        self._latest: TokenEvent | None = None
        self._is_broken = False
        self._is_closed = False
        self._began_at = 0.0
        self._ends_at: float | None = None  # seconds, by a clock that nobody sets
        self._span: Span | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the answer, as far as is known by now.

        Returns 0 once it has failed, so that a failure of ours costs the caller nothing.
        """
        latest = self._latest
        if latest is None or latest.error is not None:
            return 0
        return latest.num_prompt_tokens + latest.num_tokens

    async def next_event(self) -> TokenEvent:
        """Return the next event. The one with a finish_reason is the last.

        Raises:
            RuntimeError: the backend ended without a terminal event.
        """
        if self._events is None:
            self._events = self._begin()
        try:
            event = await self._next_before_deadline(self._events)
        except Exception:
            self._is_broken = True
            raise
        event = self.sources.marked(event)
        if self._latest is None and not self.failure_of(event):
            event = replace(event, text=self.sources.opening + event.text)
        self._latest = event
        return event

    def _begin(self) -> AsyncGenerator[TokenEvent, None]:
        call = self._call
        self._began_at = time.monotonic()
        if call.deadline_at is not None:
            self._ends_at = self._began_at + call.deadline_at - time.time() + GRACE_S
        if tracing.is_on():
            self._span = tracing.begin("answer", attributes=_named(call, self._specialty))
            self._call = replace(call, trace_context=tracing.carrier_of(self._span))
        return self.sources.events(self._call)

    async def whole(self) -> Completed:
        """Read all the events.

        Raises:
            ApiError: the answer failed, or its deadline passed before anything was generated.
        """
        texts: list[str] = []
        scores: list[ScoredToken] = []
        try:
            while True:
                event = await self.next_event()
                texts.append(event.text)
                scores += event.scores
                if event.finish_reason is not None:
                    break
        finally:
            await self.close()
        failure = self.failure_of(event)
        if failure:
            raise failure
        verdict = self.sources.verdict()
        if verdict.text is not None:
            return Completed(verdict.text, complete(event), verdict)
        if len(scores) > len(event.scores):
            event = replace(event, scores=tuple(scores))
        return Completed("".join(texts), event, verdict)

    def failure_of(self, event: TokenEvent) -> ApiError | None:
        """Return the refusal that a terminal event means; None if there is an answer."""
        if event.error is not None:
            return self._explain(event.error)
        if event.finish_reason is FinishReason.TIMEOUT and not event.num_tokens:
            return ApiError(
                408,
                "deadline_exceeded",
                "the deadline passed before anything was generated: give a larger timeout_s, or "
                "try again when the server is less busy",
                param="timeout_s",
            )
        return None

    async def close(self) -> None:
        """Cancel the answer on the model's side if it has not ended, and record how it ended."""
        if self._events is None or self._is_closed:
            return
        self._is_closed = True
        try:
            await self._events.aclose()
        finally:
            self._record(self._outcome())

    def _record(self, outcome: str) -> None:
        call, latest = self._call, self._latest
        self._backend.record(Outcome(self._specialty, call.adapter, outcome, self._confidence))
        num_tokens = 0 if latest is None else latest.num_tokens
        error = None if outcome in _GOOD else outcome
        ended: dict[str, tracing.Value | None] = {"polyclinic.outcome": outcome}
        ended["polyclinic.num_tokens"] = num_tokens
        tracing.end(self._span, error, attributes=ended)
        if self._backend.limits.log_requests:
            fields = {"outcome": outcome, "specialty": self._specialty, "adapter": call.adapter}
            seconds = round(time.monotonic() - self._began_at, 4)
            more = {"version": call.adapter_version, "num_tokens": num_tokens, "seconds": seconds}
            log_request(logger, call.request_id, "answer", **fields, **more)

    def _outcome(self) -> str:
        latest = self._latest
        if self._is_broken:
            return "internal_error"
        if latest is None or latest.finish_reason is None:
            return str(FinishReason.CANCELLED)
        return latest.error.code if latest.error else str(latest.finish_reason)

    async def _next_before_deadline(self, events: AsyncGenerator[TokenEvent, None]) -> TokenEvent:
        try:
            seconds_left = None if self._ends_at is None else self._ends_at - time.monotonic()
            async with asyncio.timeout(seconds_left) as timeout:
                return await anext(events)
        except TimeoutError:
            if not timeout.expired():
                raise
            return self._timed_out()
        except StopAsyncIteration:
            raise RuntimeError(
                f"request {self._call.request_id} ended without a terminal event"
            ) from None

    def _timed_out(self) -> TokenEvent:
        reason = FinishReason.TIMEOUT
        if self._latest is None:
            return TokenEvent(self._call.request_id, "", 0, 0, Timings(), reason)
        return replace(self._latest, text="", finish_reason=reason, scores=())


def _named(call: GenerateRequest, specialty: str | None) -> dict[str, tracing.Value | None]:
    return {
        "polyclinic.request_id": call.request_id,
        "polyclinic.specialty": specialty,
        "polyclinic.adapter": call.adapter,
        "polyclinic.version": call.adapter_version,
        "polyclinic.stream": call.stream,
    }


def complete(event: TokenEvent) -> TokenEvent:
    """Return the terminal event of an answer whose text was replaced by a whole one."""
    return replace(event, finish_reason=FinishReason.STOP)
