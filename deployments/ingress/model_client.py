"""A call to the model deployment: Ray's failures become events, and a lost replica is tried again.

Only a call that has yielded nothing is repeated, and once where its replica was lost: the client
cannot tell, and nothing is said twice.
"""

import functools
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    RayServeException,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from deployments.channel.receiver import LOST, EventReceiver
from deployments.engine.errors import QueueFull
from deployments.engine.request import ErrorInfo, TokenEvent, failed_event
from deployments.ingress.call_guard import NO_MODEL_REPLICA, Guard, NobodyThere, ReplicaHangs
from deployments.ingress.residency import residency
from deployments.ingress.responses import ChannelResponse, EventResponse, OneEvent
from deployments.messages import GenerateRequest

logger = logging.getLogger(__name__)

Start = Callable[[GenerateRequest], EventResponse]


class ModelClient:
    """Sends calls to a replica that Serve picks. The methods are kept, since Serve builds new
    handles for each that is asked for.

    Args:
        host: the address of this node, where the events of streams arrive.
    """

    def __init__(self, model: DeploymentHandle, host: str) -> None:
        self._model = model
        self._receiver = EventReceiver(host)

    def start(self, call: GenerateRequest) -> EventResponse:
        """Send the call. A whole answer is one event, which the Serve call itself returns; the
        events of a stream arrive over the channel."""
        where = functools.partial(residency().place_of, call)
        if call.stream:
            send = functools.partial(self._stream.remote, call)
            return ChannelResponse(self._receiver, call.request_id, send, where)
        return OneEvent(self._answer.remote(call), where)

    @functools.cached_property
    def _stream(self) -> Any:
        return self._model.stream

    @functools.cached_property
    def _answer(self) -> Any:
        return self._model.answer


async def answer_events(
    start: Start,
    call: GenerateRequest,
    guard: Guard,
    saw: Callable[[TokenEvent], None] = lambda event: None,
) -> AsyncGenerator[TokenEvent, None]:
    """Yield the events of one answer, the last of them terminal. Closing it cancels the answer.

    Args:
        start: sends the call.
        guard: whether it may be sent, and once more.
        saw: called with each event.
    """
    has_begun, num_sent = False, 0
    while not has_begun:
        refused = await guard.refusal(call)
        if refused is not None:
            event = failed_event(call.request_id, refused)
            saw(event)
            yield event
            return
        response, is_finished = start(call), False
        num_sent += 1
        try:
            while not is_finished:
                event = await _next_event(response, call, None if has_begun else guard)
                is_finished = event.finish_reason is not None
                if is_finished:
                    guard.ended(call, event)
                    if not has_begun and await guard.sends_again(call, event, num_sent):
                        break
                has_begun = True
                saw(event)
                yield event
        finally:
            residency().ended(call)
            if not is_finished:
                response.cancel()
        if not has_begun:
            logger.warning("request %s: its replica cannot answer; asking again", call.request_id)


async def _next_event(
    response: EventResponse, call: GenerateRequest, guard: Guard | None
) -> TokenEvent:
    try:
        if guard is None:
            return await response.get()
        async with guard.waiting(response):
            return await response.get()
    except NobodyThere:
        response.cancel()
        return failed_event(call.request_id, NO_MODEL_REPLICA)
    except ReplicaHangs:
        response.cancel()
        return failed_event(call.request_id, LOST)
    except RequestCancelledError:
        raise
    except (RayActorError, RayServeException) as error:
        return failed_event(call.request_id, info_of(error))


def info_of(error: RayActorError | RayServeException) -> ErrorInfo:
    """Return what a client is told of a call that Ray could not make."""
    if isinstance(error, BackPressureError):
        num_waiting, limit = error.args[:2]
        return QueueFull(num_waiting, limit).info
    if isinstance(error, RayActorError | ReplicaUnavailableError):
        return LOST
    return NO_MODEL_REPLICA  # DeploymentUnavailableError: it failed, or is gone
