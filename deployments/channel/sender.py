"""The model replica's end of the channel: one connection to each router replica that asks."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import cast

from deployments.channel.frames import (
    MAX_FRAME_BYTES,
    ChannelAddress,
    pack_events,
    pack_greeting,
    parts_of,
)
from deployments.channel.keepalive import end_when_peer_is_gone
from deployments.engine.request import TokenEvent

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
# What may wait for a router replica that does not read. A replica's answers are far smaller than
# this together, so a router replica that lets so much pile up has stopped.
MAX_UNSENT_BYTES = 32 * 1024 * 1024


class ChannelLost(Exception):
    """The router replica cannot be reached, or its connection has ended."""


class EventSender:
    """The connections of one model replica, by the address of the router replica."""

    def __init__(self) -> None:
        self._connections: dict[ChannelAddress, asyncio.Task[SenderConnection]] = {}

    async def connect(self, address: ChannelAddress) -> "SenderConnection":
        """Return the connection to `address`; open it if there is none.

        Raises:
            ChannelLost: Nobody answers there within CONNECT_TIMEOUT_S.
        """
        task = self._connections.get(address)
        if task is None:
            task = asyncio.ensure_future(self._opened(address))
            self._connections[address] = task
        return await asyncio.shield(task)

    def close(self) -> None:
        """End every connection."""
        for task in list(self._connections.values()):
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().close()

    async def _opened(self, address: ChannelAddress) -> "SenderConnection":
        loop = asyncio.get_running_loop()

        def lost() -> None:
            self._connections.pop(address, None)

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: SenderConnection(address.token, lost), address.host, address.port
                )
        except (OSError, TimeoutError) as error:
            lost()
            raise ChannelLost(f"no connection: {type(error).__name__}") from None
        return connection


class SenderConnection(asyncio.Protocol):
    """Events to one router replica. Those that are sent in one turn of the event loop leave as one
    frame."""

    def __init__(self, token: str, on_lost: Callable[[], None]) -> None:
        self.is_lost = False
        self._token = token
        self._on_lost = on_lost
        self._unsent: list[tuple[int, TokenEvent]] = []
        self._tasks: set[asyncio.Task[object]] = set()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        end_when_peer_is_gone(transport)
        self._transport.write(pack_greeting(self._token))

    def pause_writing(self) -> None:
        logger.error("a router replica reads no more: its connection is ended")
        assert self._transport is not None, "paused before the connection was made"
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._on_lost()
        for task in self._tasks:
            task.cancel()

    def send(self, stream_id: int, event: TokenEvent) -> None:
        """Send an event with the others of this turn of the event loop.

        Raises:
            ChannelLost: The connection has ended.
        """
        if self.is_lost:
            raise ChannelLost("the router replica has closed the connection")
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append((stream_id, event))

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Cancel the current task when the connection ends, so that no answer is generated for a
        router replica that is gone.

        Raises:
            ChannelLost: In place of that cancellation.
        """
        task = asyncio.current_task()
        assert task is not None, "answering outside of a task"
        if self.is_lost:
            raise ChannelLost("the router replica has closed the connection")
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if self.is_lost and task.uncancel() == 0:
                raise ChannelLost("the router replica has closed the connection") from None
            raise
        finally:
            self._tasks.discard(task)

    def close(self) -> None:
        """Send what is left and end the connection."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        events, self._unsent = self._unsent, []
        if events and not self.is_lost:
            assert self._transport is not None, "events before the connection was made"
            frame = pack_events(events)
            if len(frame) <= MAX_FRAME_BYTES:
                self._transport.write(frame)
                return
            for stream_id, event in events:  # scores of long prompts: a frame has a limit
                for part in parts_of(event):
                    self._transport.write(pack_events([(stream_id, part)]))
