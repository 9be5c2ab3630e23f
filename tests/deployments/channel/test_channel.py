"""Both ends of the channel over loopback: order, loss, strangers, readers that leave or lag."""

import asyncio
import contextlib
import dataclasses
import struct
from collections.abc import AsyncIterator

import pytest
import uvloop

from deployments.channel import sender as sending
from deployments.channel.frames import (
    MAX_FRAME_BYTES,
    ChannelAddress,
    pack_events,
    pack_greeting,
    parts_of,
)
from deployments.channel.receiver import EventReceiver, ReceivedStream
from deployments.channel.sender import ChannelLost, EventSender
from deployments.engine.request import FinishReason, ScoredToken, Timings, TokenEvent

HOST = "127.0.0.1"
NUM_LEAVING = 500


def event(text: str, reason: FinishReason | None = None) -> TokenEvent:
    return TokenEvent("r", text, 1, 3, Timings(0.1, 0.2, None), reason)


END = event("!", FinishReason.STOP)


@pytest.fixture
async def receiver() -> AsyncIterator[EventReceiver]:
    receiver = EventReceiver(HOST)
    yield receiver
    await receiver.close()


@pytest.fixture
async def sender() -> AsyncIterator[EventSender]:
    sender = EventSender()
    yield sender
    sender.close()
    await asyncio.sleep(0)


async def read(stream: ReceivedStream) -> list[TokenEvent]:
    found: list[TokenEvent] = []
    async with asyncio.timeout(10):
        while not found or found[-1].finish_reason is None:
            found.append(await stream.get())
    return found


async def raw(address: ChannelAddress, *data: bytes) -> asyncio.StreamReader:
    """A stranger's connection that says `data`."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    for part in data:
        writer.write(part)
    await writer.drain()
    return reader


async def test_more_scores_than_a_frame_holds_arrive_as_one_answer(
    receiver: EventReceiver, sender: EventSender
) -> None:
    """The longest tokens that a vocabulary has, at every place: no other answer may suffer."""
    long = "-" * 128
    top = ((long, long.encode(), -1.0),) * 20
    scores = tuple(ScoredToken(long, b"-", n, -0.5, top, True) for n in range(4_000))
    large = dataclasses.replace(event("prompt", FinishReason.LENGTH), scores=scores)
    assert len(pack_events([(1, large)])) > MAX_FRAME_BYTES
    assert max(len(pack_events([(1, part)])) for part in parts_of(large)) < MAX_FRAME_BYTES
    stream, other = receiver.open("r"), receiver.open("other")
    connection = await sender.connect(await receiver.address())
    connection.send(other.stream_id, event("a"))
    connection.send(stream.stream_id, large)
    connection.send(other.stream_id, END)
    events = await read(stream)
    assert "".join(found.text for found in events) == "prompt"
    assert tuple(score for found in events for score in found.scores) == scores
    assert "".join(found.text for found in await read(other)) == "a!"


@pytest.mark.parametrize("num", [0, 1, 2_380, 2_381, 2_382, 10_000])
def test_parts_hold_all_scores_once_and_one_of_them_the_rest(num: int) -> None:
    top = (("a", b"a", -1.0),) * 20
    scores = tuple(ScoredToken("b", b"b", n, -0.5, top, True) for n in range(num))
    *more, last = parts_of(dataclasses.replace(END, scores=scores))
    assert [len(part.scores) for part in more] == [2_380] * ((num - 1) // 2_380 if num else 0)
    assert tuple(score for part in (*more, last) for score in part.scores) == scores
    assert {(part.text, part.finish_reason) for part in more} <= {("", None)}
    assert dataclasses.replace(last, scores=()) == END


async def test_an_answer_arrives_in_order_with_its_request_id(
    receiver: EventReceiver, sender: EventSender
) -> None:
    stream = receiver.open("r")
    connection = await sender.connect(await receiver.address())
    for text in "abc":
        connection.send(stream.stream_id, event(text))
        await asyncio.sleep(0.01)
    connection.send(stream.stream_id, END)
    events = await read(stream)
    assert "".join(found.text for found in events) == "abc!"
    assert {found.request_id for found in events} == {"r"}
    assert events[-1].finish_reason is FinishReason.STOP
    assert events[-1].timings == END.timings


async def test_answers_share_one_connection_and_one_frame(
    receiver: EventReceiver, sender: EventSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_frames = 0

    def counted(events: list[tuple[int, TokenEvent]]) -> bytes:
        nonlocal num_frames
        num_frames += 1
        return pack_events(events)

    monkeypatch.setattr(sending, "pack_events", counted)
    streams = [receiver.open("r") for _ in range(64)]
    address = await receiver.address()
    connections = {id(await sender.connect(address)) for _ in streams}
    assert len(connections) == 1
    connection = await sender.connect(address)
    for stream in streams:
        connection.send(stream.stream_id, event(str(stream.stream_id)))
        connection.send(stream.stream_id, END)
    for stream, events in zip(streams, await asyncio.gather(*map(read, streams)), strict=True):
        assert "".join(found.text for found in events) == f"{stream.stream_id}!"
    assert num_frames == 1


async def test_a_slow_reader_gets_what_it_missed_as_one_event(
    receiver: EventReceiver, sender: EventSender
) -> None:
    stream = receiver.open("r")
    connection = await sender.connect(await receiver.address())
    for number in range(1000):
        connection.send(stream.stream_id, event(f"{number} "))
        if number % 100 == 0:
            await asyncio.sleep(0)
    connection.send(stream.stream_id, END)
    await asyncio.sleep(0.2)
    events = await read(stream)
    assert len(events) == 1
    assert events[0].text == "".join(f"{number} " for number in range(1000)) + "!"


async def test_nothing_follows_the_last_event(receiver: EventReceiver) -> None:
    stream = receiver.open("r")
    stream.put(END)
    stream.put(event("late"))
    stream.lose()
    stream.fail(RuntimeError("late"))
    assert await read(stream) == [END]


@pytest.mark.parametrize("num_bytes", [0, 3, 9])
async def test_a_connection_cut_in_mid_frame_loses_its_answers_and_no_others(
    receiver: EventReceiver, sender: EventSender, num_bytes: int
) -> None:
    lost, kept = receiver.open("lost"), receiver.open("kept")
    address = await receiver.address()
    reader, writer = await asyncio.open_connection(address.host, address.port)
    first = pack_events([(lost.stream_id, event("a"))])
    writer.write(pack_greeting(address.token) + first + first[:num_bytes])
    connection = await sender.connect(address)
    connection.send(kept.stream_id, event("b"))
    await asyncio.sleep(0.05)
    writer.close()
    events = await read(lost)
    assert "".join(found.text for found in events) == "a"
    assert events[-1].error is not None
    assert events[-1].error.code == "replica_lost"
    connection.send(kept.stream_id, END)
    assert "".join(found.text for found in await read(kept)) == "b!"
    assert await reader.read() == b""


@pytest.mark.parametrize(
    "data",
    [
        pack_greeting("wrong"),
        pack_events([(1, END)]),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        struct.pack(">I", 2**31),
    ],
)
async def test_a_stranger_is_cut_off_and_reaches_no_answer(
    receiver: EventReceiver, sender: EventSender, data: bytes
) -> None:
    stream = receiver.open("r")
    address = await receiver.address()
    stranger = await raw(address, data, pack_events([(stream.stream_id, event("false"))]))
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await stranger.read() == b""
    connection = await sender.connect(address)
    connection.send(stream.stream_id, END)
    assert await read(stream) == [END]


async def test_a_bad_frame_after_the_greeting_loses_that_connections_answers(
    receiver: EventReceiver,
) -> None:
    stream = receiver.open("r")
    address = await receiver.address()
    await raw(
        address,
        pack_greeting(address.token),
        pack_events([(stream.stream_id, event("a"))]),
        struct.pack(">I", 1) + b"\xc1",
    )
    events = await read(stream)
    assert events[-1].error is not None
    assert events[-1].error.code == "replica_lost"


async def test_five_hundred_readers_that_leave_at_once_leave_nothing_behind(
    receiver: EventReceiver, sender: EventSender
) -> None:
    streams = [receiver.open("r") for _ in range(NUM_LEAVING)]
    connection = await sender.connect(await receiver.address())
    for stream in streams:
        connection.send(stream.stream_id, event("a"))
    for stream in streams:
        stream.close()
    assert receiver.num_open == 0
    stays = receiver.open("r")
    for stream in streams:
        connection.send(stream.stream_id, END)
    connection.send(stays.stream_id, END)
    assert await read(stays) == [END]


async def test_answers_end_when_their_router_replica_goes(
    receiver: EventReceiver, sender: EventSender
) -> None:
    address = await receiver.address()
    connection = await sender.connect(address)
    entered = asyncio.Event()

    async def answering() -> str:
        try:
            with connection.answering():
                entered.set()
                await asyncio.sleep(60)
        except ChannelLost:
            return "lost"
        return "ended"

    task = asyncio.create_task(answering())
    await entered.wait()
    connection.close()
    async with asyncio.timeout(5):
        assert await task == "lost"
    with pytest.raises(ChannelLost):
        connection.send(1, END)
    with pytest.raises(ChannelLost), connection.answering():
        pass
    assert await sender.connect(address) is not connection


async def test_a_cancelled_answer_stays_cancelled(
    receiver: EventReceiver, sender: EventSender
) -> None:
    connection = await sender.connect(await receiver.address())

    async def answering() -> None:
        with connection.answering():
            await asyncio.sleep(60)

    task = asyncio.create_task(answering())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nobody_listens(receiver: EventReceiver, sender: EventSender) -> None:
    address = await receiver.address()
    nobody = dataclasses.replace(address, port=1)
    for _ in range(2):
        with pytest.raises(ChannelLost, match="ConnectionRefusedError"):
            await sender.connect(nobody)


async def test_a_router_replica_that_reads_no_more_is_given_up(
    sender: EventSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "MAX_UNSENT_BYTES", 64 * 1024)

    async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)
        writer.close()

    server = await asyncio.start_server(never_reads, HOST, 0, limit=1024)
    address = ChannelAddress(HOST, server.sockets[0].getsockname()[1], "t")
    connection = await sender.connect(address)
    with contextlib.suppress(ChannelLost):
        for _ in range(200):
            connection.send(1, event("x" * 100_000))
            await asyncio.sleep(0)
    assert connection.is_lost
    server.close()


def test_on_the_event_loop_of_serves_replicas() -> None:
    async def answer() -> list[TokenEvent]:
        receiver, sender = EventReceiver(HOST), EventSender()
        stream = receiver.open("r")
        connection = await sender.connect(await receiver.address())
        connection.send(stream.stream_id, END)
        events = await read(stream)
        sender.close()
        await receiver.close()
        return events

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(answer()) == [END]
