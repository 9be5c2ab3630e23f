"""A call to the model deployment: Ray's failures become events, and a lost replica is tried again.

Only a call that has yielded nothing is repeated, and once: the client cannot tell, and nothing is
said twice.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol

from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    RayServeException,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentResponse

from deployments.engine.request import ErrorInfo, QueueFull, TokenEvent, failed_event
from deployments.messages import GenerateRequest

logger = logging.getLogger(__name__)

LOST = ErrorInfo(
    "replica_lost", "the model replica was lost while answering: ask again", retry_after_s=5
)
NO_REPLICA = ErrorInfo(
    "no_replica", "no model replica is running: ask again later", retry_after_s=10
)
# What a replica that is about to be replaced says, before it has begun to answer.
_ENDED_ENGINE = "engine_stopped"


class EventResponse(Protocol):
    """What a streaming handle returns: Serve's DeploymentResponseGenerator."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]: ...

    def cancel(self) -> None: ...


class OneEvent:
    """A plain response as a stream of one event."""

    def __init__(self, response: DeploymentResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        yield await self._response

    def cancel(self) -> None:
        self._response.cancel()


Start = Callable[[GenerateRequest], EventResponse]


async def answer_events(start: Start, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
    """Yield the events of one answer, the last of them terminal. Closing it cancels the answer.

    Args:
        start: sends the call to a replica that Serve picks.
    """
    has_begun = False
    async with contextlib.aclosing(_attempt(start, call)) as events:
        async for event in events:
            if has_begun or not _is_lost(event):
                has_begun = True
                yield event
    if has_begun:
        return
    logger.warning("request %s: its replica was lost; asking another", call.request_id)
    async with contextlib.aclosing(_attempt(start, call)) as events:
        async for event in events:
            yield event


def _is_lost(event: TokenEvent) -> bool:
    return event.error is not None and event.error.code in (LOST.code, _ENDED_ENGINE)


async def _attempt(start: Start, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
    response = start(call)
    is_finished = False
    try:
        async for event in response:
            is_finished = event.finish_reason is not None
            yield event
    except BackPressureError as error:
        is_finished = True
        num_waiting, limit = error.args[:2]
        yield failed_event(call.request_id, QueueFull(num_waiting, limit).info)
    except (RayActorError, ReplicaUnavailableError):
        is_finished = True
        yield failed_event(call.request_id, LOST)
    except RequestCancelledError:
        raise
    except RayServeException:  # DeploymentUnavailableError, when it failed or is gone
        is_finished = True
        yield failed_event(call.request_id, NO_REPLICA)
    finally:
        if not is_finished:
            response.cancel()
