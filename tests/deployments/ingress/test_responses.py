"""A streamed call: events over the channel, and what the Serve call that sends them says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from deployments.channel.frames import ChannelAddress
from deployments.channel.receiver import LOST, NOT_REACHED, EventReceiver
from deployments.channel.sender import EventSender
from deployments.engine.request import FinishReason, Timings, TokenEvent
from deployments.ingress import responses
from deployments.ingress.responses import ChannelResponse

END = TokenEvent("", "!", 1, 3, Timings(), FinishReason.STOP)


class ServeCall:
    """Serve's response of a call to ModelReplica.stream, which runs `work` in this process."""

    def __init__(self, work: Callable[[int, ChannelAddress], Any]) -> None:
        self._work = work
        self.is_cancelled = False

    def send(self, stream_id: int, address: ChannelAddress) -> Any:
        self._task = asyncio.ensure_future(self._work(stream_id, address))
        return self

    def __await__(self) -> Any:
        return self._task.__await__()

    def cancel(self) -> None:
        self.is_cancelled = True
        self._task.cancel()


@pytest.fixture
async def receiver() -> AsyncIterator[EventReceiver]:
    receiver = EventReceiver("127.0.0.1")
    yield receiver
    assert receiver.num_open == 0, "an answer was left open"
    await receiver.close()


def response_of(receiver: EventReceiver, call: ServeCall) -> ChannelResponse:
    return ChannelResponse(receiver, "r-1", call.send)


async def test_an_answer(receiver: EventReceiver) -> None:
    async def work(stream_id: int, address: ChannelAddress) -> bool:
        sender = EventSender()
        (await sender.connect(address)).send(stream_id, END)
        await asyncio.sleep(0)
        return True

    call = ServeCall(work)
    event = await response_of(receiver, call).get()
    assert (event.request_id, event.text, event.finish_reason) == ("r-1", "!", FinishReason.STOP)
    assert not call.is_cancelled


async def test_what_serve_raises_reaches_the_reader(receiver: EventReceiver) -> None:
    async def work(stream_id: int, address: ChannelAddress) -> bool:
        raise ActorDiedError

    with pytest.raises(ActorDiedError):
        await response_of(receiver, ServeCall(work)).get()


@pytest.mark.parametrize("are_sent", [True, False])
async def test_a_call_that_ended_without_its_last_event_is_lost(
    receiver: EventReceiver, monkeypatch: pytest.MonkeyPatch, are_sent: bool
) -> None:
    monkeypatch.setattr(responses, "ON_THE_WAY_S", 0.05)

    async def work(stream_id: int, address: ChannelAddress) -> bool:
        return are_sent

    event = await response_of(receiver, ServeCall(work)).get()
    assert event.error is not None
    assert event.error == (LOST if are_sent else NOT_REACHED)
    assert event.error.code == "replica_lost"


async def test_a_client_that_leaves_cancels_the_serve_call(receiver: EventReceiver) -> None:
    async def work(stream_id: int, address: ChannelAddress) -> bool:
        await asyncio.sleep(60)
        return True

    call = ServeCall(work)
    response = response_of(receiver, call)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await response.get()
    response.cancel()
    assert call.is_cancelled


async def test_a_client_that_leaves_before_the_call_was_sent(receiver: EventReceiver) -> None:
    async def work(stream_id: int, address: ChannelAddress) -> bool:
        return True

    response_of(receiver, ServeCall(work)).cancel()
