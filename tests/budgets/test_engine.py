"""What the engine itself does for a step and a token, over a decoder that does nothing."""

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest

from deployments.channel.frames import pack_events
from deployments.channel.sender import SenderConnection
from deployments.engine.core import EngineLimits, ThreadCore
from deployments.engine.decoder import DecoderInfo
from deployments.engine.engine import Engine
from deployments.engine.request import Request, SamplingParams, StepOutput, Timings, TokenEvent
from deployments.engine.row import EngineRow, Outbox
from deployments.engine.scheduling.loop import StepLoop
from deployments.engine_process.wire import pack_step
from tests.budgets.conftest import Hold
from tests.budgets.counting import Calls, blocks_kept_by, calls_of
from tests.deployments.engine.test_step_engine import ScriptedStepDecoder

NUM_ROWS, NUM_TOKENS = 16, 64
EVENT = TokenEvent("", " itchy", 12, 40, Timings(0.001, 0.1))


class Wide(ScriptedStepDecoder):
    """Room for all rows; their answers are as long as their prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.capacities = (300,) * NUM_ROWS

    @property
    def info(self) -> DecoderInfo:
        return replace(super().info, num_positions=300)


def requests() -> list[Request]:
    prompt = tuple(range(65, 65 + 20)) * 10
    return [Request(f"r{n}", prompt, "a", SamplingParams(NUM_TOKENS)) for n in range(NUM_ROWS)]


class Core:
    """The engine's loop without its thread; keeps what each step delivers."""

    def __init__(self) -> None:
        self.decoder = Wide()
        self.delivered: list[StepOutput] = []
        self.outbox = Outbox(self.delivered.append)
        self.loop = StepLoop(self.decoder, 16 * 300, self.outbox, lambda: 0.0)

    def step(self, arrivals: Sequence[EngineRow] = ()) -> None:
        self.loop.step(list(arrivals))
        self.outbox.flush()

    def rows(self) -> list[EngineRow]:
        eos = self.decoder.info.eos_ids
        return [EngineRow(n, r, self.outbox, eos, lambda: 0.0) for n, r in enumerate(requests())]


def test_a_step_in_the_engine(hold: Hold) -> None:
    core = Core()
    core.step(core.rows())
    for _ in range(8):
        core.step()
    core.delivered.clear()
    calls = calls_of(core.step)
    hold("engine: Python calls of a step for 16 rows", calls)
    hold("engine: messages of a step for 16 rows", len(core.delivered))
    num_tokens = sum(len(output.tokens) for output in core.delivered)
    assert num_tokens == NUM_ROWS
    num_bytes = sum(len(pack_step(output)) for output in core.delivered)
    hold("engine: bytes of a token on the way to the replica", num_bytes / num_tokens)


def test_steps_of_sixteen_answers(hold: Hold) -> None:
    core = Core()
    arrivals = core.rows()
    num_steps = 0
    while sum(len(output.ended) for output in core.delivered) < NUM_ROWS:
        core.step(arrivals)
        arrivals = []
        num_steps += 1
        assert num_steps < 10 * NUM_TOKENS
    hold("engine: steps for 16 answers of 64 tokens", num_steps)


async def test_text_of_a_token_in_the_replica(hold: Hold) -> None:
    """From a step's tokens to events: detokenising, stop strings, hand-over to the reader."""
    decoder = Wide()
    limits = EngineLimits(max_rows=16, max_waiting=50, max_input_tokens=300)
    engine = Engine(ThreadCore(decoder, limits), limits)
    asked = [asyncio.ensure_future(_read(engine, request)) for request in requests()]
    await asyncio.sleep(0)
    numbers = list(range(1, NUM_ROWS + 1))
    with Calls() as calls:
        for token in range(NUM_TOKENS // 2):
            engine._take(StepOutput([], numbers, [66 + token % 20] * NUM_ROWS, []))
            await asyncio.sleep(0.001)
    for task in asked:
        task.cancel()
    texts = await asyncio.gather(*asked)
    assert all(len(text) >= NUM_TOKENS // 2 - 1 for text in texts)
    hold("replica: Python calls for a token's text", calls.total / (NUM_ROWS * NUM_TOKENS // 2))


async def _read(engine: Engine, request: Request) -> str:
    text = ""
    with contextlib.suppress(asyncio.CancelledError):
        async for event in engine.generate(request):
            text += event.text
    return text


def test_an_event_on_the_channel(hold: Hold) -> None:
    num_bytes = len(pack_events([(stream, EVENT) for stream in range(16)])) / 16
    hold("channel: bytes of an event", num_bytes)


async def test_frames_of_a_turn(hold: Hold) -> None:
    hold("channel: frames of a turn with an event of 16 answers", await frames_of_a_turn())


async def frames_of_a_turn() -> int:
    connection, transport = SenderConnection("token", lambda: None), Written()
    connection.connection_made(transport)
    greeted = transport.num_frames
    for stream in range(NUM_ROWS):
        connection.send(stream, EVENT)
    await asyncio.sleep(0.01)
    return transport.num_frames - greeted


class Written(asyncio.Transport):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__({"socket": Mock(spec=socket.socket)})
        self.num_frames = 0

    def write(self, data: Any) -> None:
        self.num_frames += 1

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def test_memory_that_steps_leave(hold: Hold) -> None:
    """Without what they deliver, which the replica takes."""
    core = Core()
    core.step(core.rows())

    def steps() -> None:
        for _ in range(NUM_TOKENS // 2):
            core.step()
            core.delivered.clear()

    kept = blocks_kept_by(steps)
    hold("engine: blocks of memory that a token leaves", kept / (NUM_ROWS * NUM_TOKENS // 2))


def test_one_more_message_of_a_step_is_noticed(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    core = Core()
    core.step(core.rows())
    core.delivered.clear()
    push = EngineRow.push

    def impatient(row: EngineRow, *token: Any) -> None:
        push(row, *token)
        if row.number == 0:
            core.outbox.flush()

    monkeypatch.setattr(EngineRow, "push", impatient)
    core.step()
    with pytest.raises(AssertionError, match="messages of a step for 16 rows: 2, budget 1"):
        hold("engine: messages of a step for 16 rows", len(core.delivered))


async def test_a_frame_for_each_answer_is_noticed(
    hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = SenderConnection.send

    def impatient(connection: SenderConnection, stream: int, event: TokenEvent) -> None:
        send(connection, stream, event)
        connection._flush()

    monkeypatch.setattr(SenderConnection, "send", impatient)
    with pytest.raises(AssertionError, match="of 16 answers: 16, budget 1"):
        hold("channel: frames of a turn with an event of 16 answers", await frames_of_a_turn())


def test_memory_that_a_token_leaves_is_noticed(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    push = EngineRow.push
    monkeypatch.setattr(
        EngineRow, "push", lambda row, *token: (push(row, *token), kept.append((row, {})))
    )
    with pytest.raises(AssertionError, match="blocks of memory that a token leaves"):
        test_memory_that_steps_leave(hold)
