"""When a call to the model may be sent, how long it may wait for a replica, and when it is sent
again."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from deployments.channel.receiver import LOST, NOT_REACHED
from deployments.engine.request import ErrorInfo, TokenEvent
from deployments.ingress.model_watch import ModelWatch
from deployments.ingress.quarantine import Quarantine
from deployments.ingress.residency import residency
from deployments.ingress.responses import EventResponse
from deployments.messages import OTHER_CONFIG, GenerateRequest

NO_MODEL_REPLICA = ErrorInfo(
    "no_model_replica", "no model replica is running: ask again later", retry_after_s=10
)
# What a replica that is about to be replaced says, before it has begun to answer.
_ENDED_ENGINE = "engine_stopped"
_PAUSE_S = 0.1  # before a call that met another configuration is sent again
_MAX_OTHERS = 50  # how often that may happen to one call


class Guard(Protocol):
    """What `answer_events` asks before, while and after it sends a call."""

    async def refusal(self, call: GenerateRequest) -> ErrorInfo | None:
        """Return why the call may not be sent now; wait while its version's models come."""

    def waiting(self, response: EventResponse) -> contextlib.AbstractAsyncContextManager[None]:
        """Raise NobodyThere inside it if the call waits for a replica and there is none, and
        ReplicaHangs if it was given to one that answers nobody any more."""

    async def sends_again(self, call: GenerateRequest, event: TokenEvent, num_sent: int) -> bool:
        """Return whether a call that has ended before it began is sent once more, after a pause."""

    def ended(self, call: GenerateRequest, event: TokenEvent) -> None:
        """Note how a call has ended."""


class NobodyThere(Exception):
    """No model replica is running, and the call was given to none."""


class ReplicaHangs(Exception):
    """The replica that the call was given to has answered nobody of late, while others do."""


def is_lost(event: TokenEvent) -> bool:
    """Whether an answer ended because its replica did."""
    return event.error is not None and event.error.code in (LOST.code, _ENDED_ENGINE)


class CallGuard:
    """Implements Guard with what the watch and the quarantine know. One event loop uses it, but
    `expire` and `saw`, which any thread may call."""

    def __init__(self, watch: ModelWatch, quarantine: Quarantine) -> None:
        self._watch = watch
        self._quarantine = quarantine
        self._waiting: dict[asyncio.Timeout, tuple[float, EventResponse]] = {}
        self._ended: dict[asyncio.Timeout, Exception] = {}  # those of them that are ended, and why
        self._loop: asyncio.AbstractEventLoop | None = None

    async def refusal(self, call: GenerateRequest) -> ErrorInfo | None:
        while self._watch.is_awaited:  # until the call's deadline, which cancels it
            self._watch.look_soon()
            await asyncio.sleep(_PAUSE_S)
        if not self._watch.is_served:
            return NO_MODEL_REPLICA
        wait_s = self._quarantine.seconds_left(call)
        if wait_s:
            return ErrorInfo(
                "question_quarantined",
                "two model replicas in a row were lost while they answered this very question, so "
                "it is kept from the others for a while: change it, or ask again later",
                retry_after_s=math.ceil(wait_s),
            )
        return None

    @contextlib.asynccontextmanager
    async def waiting(self, response: EventResponse) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as timeout:
                self._waiting[timeout] = (self._loop.time(), response)
                try:
                    yield
                finally:
                    del self._waiting[timeout]
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._ended[timeout] from None
        finally:
            self._ended.pop(timeout, None)

    def expire(self, began: float) -> None:
        """End the calls that have waited for a replica since `began` (seconds, `time.monotonic`)
        or longer: none was there then."""
        self._end(
            lambda since, response: since <= began and not response.is_assigned, NobodyThere()
        )

    def saw(self, reports: Sequence[Mapping[str, Any]]) -> None:
        """Take over what replicas say; end the calls that wait at one that is given up."""
        given_up = residency().saw(reports)
        if given_up:
            self._end(lambda _, response: response.replica in given_up, ReplicaHangs())

    def _end(self, is_meant: Callable[[float, EventResponse], bool], why: Exception) -> None:
        def end() -> None:
            now = asyncio.get_running_loop().time()
            for timeout, waiting in self._waiting.items():
                if timeout not in self._ended and is_meant(*waiting):
                    self._ended[timeout] = why
                    timeout.reschedule(now)

        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(end)

    async def sends_again(self, call: GenerateRequest, event: TokenEvent, num_sent: int) -> bool:
        if event.error is not None and event.error.code == OTHER_CONFIG.code:
            self._watch.look_soon()
            await asyncio.sleep(_PAUSE_S)
            return num_sent < _MAX_OTHERS
        if not is_lost(event):
            return False
        self._watch.look_soon()
        return num_sent < 2 and self._quarantine.may_retry()

    def ended(self, call: GenerateRequest, event: TokenEvent) -> None:
        if is_lost(event):
            if event.error != NOT_REACHED:
                self._quarantine.saw_death(call)
        elif event.error is None:
            self._quarantine.saw_answer(call)
