"""What a call to the model deployment returns: the events of one answer, and a way to cancel it."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from ray.serve.handle import DeploymentResponse

from deployments.channel.frames import ChannelAddress
from deployments.channel.receiver import LOST, NOT_REACHED, EventReceiver
from deployments.engine.request import TokenEvent

# How long the last event may arrive after the Serve call that sent it has ended.
ON_THE_WAY_S = 5.0
Where = Callable[[], str | None]


class EventResponse(Protocol):
    """The events of one answer."""

    async def get(self) -> TokenEvent:
        """Return the next event. Not called again after one with a finish reason."""

    @property
    def is_assigned(self) -> bool:
        """Whether Serve has given the call to a replica."""

    @property
    def replica(self) -> str | None:
        """The replica that was chosen for the call, as far as that is known."""

    def cancel(self) -> None: ...


def _is_assigned(response: DeploymentResponse) -> bool:
    # Serve says it nowhere else. Without the attribute a call waits to its deadline, no worse.
    found = getattr(response, "_replica_result_future", None)
    return found is None or bool(found.done())


class OneEvent:
    """A whole answer: the Serve call returns its one event.

    Args:
        where: the replica that was chosen for the call, as far as that is known.
    """

    def __init__(self, response: DeploymentResponse, where: Where = lambda: None) -> None:
        self._response = response
        self._where = where

    async def get(self) -> TokenEvent:
        event: TokenEvent = await self._response
        return event

    @property
    def is_assigned(self) -> bool:
        return _is_assigned(self._response)

    @property
    def replica(self) -> str | None:
        return self._where()

    def cancel(self) -> None:
        self._response.cancel()


class ChannelResponse:
    """An answer whose events arrive over the channel, and the Serve call that generates it.

    Serve picks the replica, counts the request and cancels it; the events do not pass Serve.

    Args:
        send: starts the Serve call with the stream's id and this router replica's address. Its
            result says whether all events were sent.
        where: as of OneEvent.
    """

    def __init__(
        self,
        receiver: EventReceiver,
        request_id: str,
        send: Callable[[int, ChannelAddress], DeploymentResponse],
        where: Where = lambda: None,
    ) -> None:
        self._receiver = receiver
        self._stream = receiver.open(request_id)
        self._send = send
        self._where = where
        self._response: DeploymentResponse | None = None
        self._watching: asyncio.Task[None] | None = None

    async def get(self) -> TokenEvent:
        if self._response is None:
            address = await self._receiver.address()
            self._response = self._send(self._stream.stream_id, address)
            # Not cancelled when the answer has ended: the Serve call ends by itself then.
            self._watching = asyncio.create_task(self._watch(self._response))
        return await self._stream.get()

    @property
    def is_assigned(self) -> bool:
        return self._response is not None and _is_assigned(self._response)

    @property
    def replica(self) -> str | None:
        return self._where()

    def cancel(self) -> None:
        self._stream.close()
        if self._response is not None:
            self._response.cancel()

    async def _watch(self, response: DeploymentResponse) -> None:
        try:
            are_sent = await response
        except BaseException as error:
            self._stream.fail(error)
            if not isinstance(error, Exception):
                raise
        else:
            if are_sent and not self._stream.has_ended:
                await asyncio.sleep(ON_THE_WAY_S)
            self._stream.lose(LOST if are_sent else NOT_REACHED)
