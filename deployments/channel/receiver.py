"""The router replica's end of the channel: it listens, and sorts events by answer."""

import asyncio
import hmac
import itertools
import logging
import secrets
from dataclasses import replace

from deployments.channel.frames import (
    BadFrame,
    ChannelAddress,
    FrameReader,
    unpack_events,
    unpack_greeting,
)
from deployments.channel.keepalive import end_when_peer_is_gone
from deployments.engine.output import RequestOutputCollector
from deployments.engine.request import ErrorInfo, TokenEvent, failed_event

logger = logging.getLogger(__name__)

LOST = ErrorInfo(
    "replica_lost", "the model replica was lost while answering: ask again", retry_after_s=5
)
# The replica lives, and says so: nobody's question has ended it.
NOT_REACHED = ErrorInfo(
    LOST.code, "the model replica could not send its answer: ask again", retry_after_s=5
)


class ReceivedStream:
    """The events of one answer, in order, as they arrive.

    A reader that is slow gets what it has missed as one event, so it costs its text and no more.
    """

    def __init__(self, receiver: "EventReceiver", stream_id: int, request_id: str) -> None:
        self.stream_id = stream_id
        self.connection: _Connection | None = None
        self._receiver = receiver
        self._request_id = request_id
        self._events = RequestOutputCollector()
        self._failure: BaseException | None = None
        self.has_ended = False

    async def get(self) -> TokenEvent:
        """Wait for and return all that came since the last call, as one event.

        Raises:
            BaseException: what `fail` was called with.
        """
        event = await self._events.get()
        if self._failure is not None:
            raise self._failure
        return replace(event, request_id=self._request_id)

    def put(self, event: TokenEvent) -> None:
        """Add an event. What comes after the last event of an answer is dropped."""
        if not self.has_ended:
            self.has_ended = event.finish_reason is not None
            self._events.put(event)
            if self.has_ended:
                self.close()

    def lose(self, why: ErrorInfo = LOST) -> None:
        """End the answer with `replica_lost`, unless its last event has arrived."""
        self.put(failed_event(self._request_id, why))

    def fail(self, error: BaseException) -> None:
        """Raise `error` to the reader, unless the last event has arrived."""
        if not self.has_ended:
            self._failure = error
            self.lose()

    def close(self) -> None:
        """Forget the stream; events that still arrive for it are dropped."""
        self._receiver.forget(self.stream_id)


class EventReceiver:
    """One listening socket, any number of model replicas connected to it, many answers on each.

    Args:
        host: the address to listen on; the port is one that is free.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._token = secrets.token_urlsafe(32)
        self._ids = itertools.count(1)
        self._streams: dict[int, ReceivedStream] = {}
        self._starting: asyncio.Task[asyncio.Server] | None = None

    async def address(self) -> ChannelAddress:
        """Return where model replicas connect to; start to listen if this is the first call."""
        if self._starting is None or (self._starting.done() and self._starting.exception()):
            self._starting = asyncio.ensure_future(self._listen())
        server = await asyncio.shield(self._starting)
        return ChannelAddress(self._host, server.sockets[0].getsockname()[1], self._token)

    def open(self, request_id: str) -> ReceivedStream:
        stream = ReceivedStream(self, next(self._ids), request_id)
        self._streams[stream.stream_id] = stream
        return stream

    def forget(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)

    async def close(self) -> None:
        """Stop listening, and lose every answer that is still open."""
        if self._starting is not None:
            server = await self._starting
            server.close()
        for stream in list(self._streams.values()):
            stream.lose()

    @property
    def num_open(self) -> int:
        return len(self._streams)

    async def _listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Connection(self), self._host, 0)

    def is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token.encode())

    def deliver(self, connection: "_Connection", stream_id: int, event: TokenEvent) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.connection = connection
            stream.put(event)

    def connection_lost(self, connection: "_Connection") -> None:
        for stream in list(self._streams.values()):
            if stream.connection is connection:
                stream.lose()


class _Connection(asyncio.Protocol):
    """One model replica. A frame that is not ours ends the connection."""

    def __init__(self, receiver: EventReceiver) -> None:
        self._receiver = receiver
        self._reader = FrameReader()
        self._is_greeted = False
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        end_when_peer_is_gone(transport)

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._reader.feed(data):
                self._take(payload)
        except BadFrame as error:
            logger.warning("a connection of the token channel was ended: %s", error)
            assert self._transport is not None, "data before the connection was made"
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._receiver.connection_lost(self)

    def _take(self, payload: bytes) -> None:
        if not self._is_greeted:
            if not self._receiver.is_token(unpack_greeting(payload)):
                raise BadFrame("the token is not this router replica's")
            self._is_greeted = True
            return
        for stream_id, event in unpack_events(payload):
            self._receiver.deliver(self, stream_id, event)
