"""One answer from the backend: its events with a deadline, exactly one of them terminal, recorded
and counted once however it ends."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace

from deployments.calls import GRACE_S, Backend, GenerationCall, Outcome
from deployments.engine.request import FinishReason, Timings, TokenEvent
from deployments.http_io import engine_error
from deployments.schema import ApiError


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer: its text and its terminal event."""

    text: str
    event: TokenEvent


class Answer:
    """`call` to the backend. Its events can be read once. `specialty` and `confidence` are for the
    metrics.

    `num_tokens`: of the prompt and the answer, as far as is known by now; 0 once it has failed, so
    that a failure of ours costs the caller nothing.
    """

    def __init__(
        self,
        backend: Backend,
        call: GenerationCall,
        specialty: str | None,
        confidence: float | None,
    ) -> None:
        self.num_tokens = 0
        self._backend = backend
        self._call = call
        self._specialty = specialty
        self._confidence = confidence

    async def events(self) -> AsyncGenerator[TokenEvent, None]:
        """Closing it cancels the answer on the model's side.

        Raises:
            RuntimeError: the backend ended without a terminal event.
        """
        outcome = str(FinishReason.CANCELLED)
        latest: TokenEvent | None = None
        try:
            async with contextlib.aclosing(self._backend.generate(self._call)) as generated:
                while latest is None or latest.finish_reason is None:
                    latest = await self._next(generated, latest)
                    failed = latest.error is not None
                    self.num_tokens = 0 if failed else latest.num_prompt_tokens + latest.num_tokens
                    if latest.finish_reason is not None:
                        outcome = latest.error.code if latest.error else str(latest.finish_reason)
                    yield latest
        except Exception:
            outcome = "internal_error"
            raise
        finally:
            self._backend.record(
                Outcome(self._specialty, self._call.adapter, outcome, self._confidence)
            )

    async def whole(self) -> Answered:
        """Reads all the events.

        Raises:
            ApiError: the answer failed, or its deadline passed before anything was generated.
        """
        pieces = []
        async with contextlib.aclosing(self.events()) as events:
            async for event in events:
                pieces.append(event.text)
        failure = failure_of(event)
        if failure:
            raise failure
        return Answered("".join(pieces), event)

    async def _next(
        self, generated: AsyncGenerator[TokenEvent, None], latest: TokenEvent | None
    ) -> TokenEvent:
        try:
            async with asyncio.timeout(self._seconds_left()) as timeout:
                return await anext(generated)
        except TimeoutError:
            if not timeout.expired():
                raise
            return self._timed_out(latest)
        except StopAsyncIteration:
            raise RuntimeError(
                f"request {self._call.request_id} ended without a terminal event"
            ) from None

    def _seconds_left(self) -> float | None:
        deadline_at = self._call.deadline_at
        return None if deadline_at is None else deadline_at - time.time() + GRACE_S

    def _timed_out(self, latest: TokenEvent | None) -> TokenEvent:
        reason = FinishReason.TIMEOUT
        if latest is None:
            return TokenEvent(self._call.request_id, "", 0, 0, Timings(), reason)
        return replace(latest, text="", finish_reason=reason)


def failure_of(event: TokenEvent) -> ApiError | None:
    """The refusal that a terminal event stands for; None: there is an answer."""
    if event.error is not None:
        return engine_error(event.error)
    if event.finish_reason is FinishReason.TIMEOUT and not event.num_tokens:
        return ApiError(
            408,
            "deadline_exceeded",
            "the deadline passed before anything was generated: give a larger timeout_s, or try "
            "again when the server is less busy",
            param="timeout_s",
        )
    return None
