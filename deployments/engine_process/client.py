"""The replica's side of the engine's process: start it, ask it, notice when it dies or hangs."""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import psutil

from deployments.channel.frames import BadFrame, FrameReader, load_frame, pack_frame
from deployments.engine.core import EngineLimits, Pulse
from deployments.engine.decoder import DecoderInfo
from deployments.engine.errors import EngineStopped
from deployments.engine.request import Request, StepOutput
from deployments.engine.scheduling.loop import traceback_without_message
from deployments.engine_process.decoder_loading import DecoderSpec
from deployments.engine_process.wire import pack_request, unpack_error, unpack_info, unpack_step
from deployments.stopped import StoppedProcesses

logger = logging.getLogger(__name__)

# Seconds without a sign of life: then new requests are refused, and then the process is killed.
SILENT_S = 3.0
LOST_S = 15.0

ResultT = TypeVar("ResultT")
Decode = Callable[[Sequence[int]], str]


class EngineProcess:
    """Implements EngineCore with a process of its own. Any thread may call it.

    Args:
        decode: token ids -> text; the process hands out ids only.
        token_bytes: the bytes of a token.
        on_lost: called once, on a thread, if the process ends after its start without having been
            asked to. A start that fails raises.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        limits: EngineLimits,
        decode: Decode,
        token_bytes: Callable[[int], bytes],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.decode = decode
        self.token_bytes = token_bytes
        self._limits = limits
        self._on_lost = on_lost
        self._gone = EngineStopped("the engine's process ended")  # until more is known
        self._stopped: EngineStopped | None = None
        self._is_closing = False
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._info: DecoderInfo | None = None
        self._pulse = Pulse("idle", time.monotonic())
        self._heard_at = time.monotonic()
        self._unsent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._ordered = ThreadPoolExecutor(1, thread_name_prefix="engine-tasks")
        self._listener: _StepReader | None = None
        self._control, control = socket.socketpair()
        self._steps, steps = socket.socketpair()
        self._steps.setblocking(False)
        with control, steps:
            self._process = _start(control, steps)
        self._watched, self._stopping = psutil.Process(self._process.pid), StoppedProcesses()
        for work in (self._write, self._read):
            threading.Thread(target=work, name=f"engine{work.__name__}", daemon=True).start()
        try:
            fields = (dataclasses.asdict(spec), dataclasses.asdict(limits))
            self._info = unpack_info(self._ask("start", *fields).result())
        except BaseException:
            self.close(timeout_s=1)
            raise

    @property
    def info(self) -> DecoderInfo:
        assert self._info is not None, "not started"
        return self._info

    @property
    def pid(self) -> int:
        return self._process.pid

    def prepare(self, grammar: str) -> "Future[None]":
        return self._ask("prepare", grammar)

    def listen(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[StepOutput], None],
        ended: Callable[[EngineStopped], None],
    ) -> None:
        if self._listener is not None:
            self._listener.stop()
        self._listener = _StepReader(self._steps, loop, take, lambda: ended(self._lost()))

    def add(self, number: int, request: Request) -> None:
        if self._stopped:
            raise self._stopped
        silent_s = time.monotonic() - self._heard_at
        if silent_s > SILENT_S:
            raise EngineStopped(f"the engine's process has not answered for {silent_s:.0f} s")
        self._unsent.put(pack_request(number, request))

    def abort(self, number: int) -> None:
        self._send("abort", number)

    def run_between_steps(self, task: Callable[[], ResultT]) -> "Future[ResultT]":
        """Run a task that calls `call`, after those that were submitted before it."""
        if self._stopped:
            raise self._stopped
        return self._ordered.submit(task)

    def call(self, operation: str, *arguments: Any) -> Any:
        """Have the process do something and return what it returns, or raise what it raises."""
        return self._ask("call", operation, *arguments).result()

    def forget(self, handle: int) -> None:
        """Let the process free the weights behind `handle`."""
        self._send("forget", handle)

    def check(self) -> None:
        if self._stopped:
            raise self._stopped
        now = time.monotonic()
        if now - self._heard_at > LOST_S:
            raise EngineStopped(f"the engine's process is silent for {now - self._heard_at:.0f} s")
        self._pulse.check(now, self._limits.step_timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        self._is_closing = True
        self._stopped = self._stopped or EngineStopped("the engine is shutting down")
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # the process ends by itself
        self._unsent.put(None)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._ordered.shutdown(wait=False, cancel_futures=True)

    # --- two threads ---

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the process is gone, as `_read` notices
            while (frame := self._unsent.get()) is not None:
                self._control.sendall(frame)

    def _read(self) -> None:
        try:
            self._take_all()
        except Exception as error:  # not what it says, or a bug of ours: nobody hears it any more
            trace = traceback_without_message(error)
            logger.error("the engine's process is killed: it was not understood: %s", trace)
            self._process.kill()
        self._end()

    def _take_all(self) -> None:
        reader = FrameReader()
        self._control.settimeout(1.0)
        while True:
            try:
                data = self._control.recv(1 << 16)
            except TimeoutError:
                self._kill_if_stuck()
                continue
            except OSError:
                break
            if not data:
                break
            for payload in reader.feed(data):
                self._take(*load_frame(payload))

    def _take(self, word: str, *fields: Any) -> None:
        self._heard_at = time.monotonic()
        match word:
            case "pulse":
                self._pulse = Pulse(*fields)
                self._kill_if_stuck()
            case "reply":
                self._calls.pop(fields[0]).set_result(fields[1])
            case "failure":
                self._calls.pop(fields[0]).set_exception(unpack_error(fields[1]))
            case "resident":
                adapters = self.info.adapters.union(fields[0]).difference(fields[1])
                self._info = dataclasses.replace(self.info, adapters=adapters)
            case "stopped":
                self._stop(fields[0])
            case "log":
                level, name, text, request_id = fields
                extra = {"process_name": "engine"}
                if request_id is not None:
                    extra |= {"request_id": request_id, "event": "engine"}
                logging.getLogger(name).log(level, "%s", text, extra=extra)

    def _kill_if_stuck(self) -> None:
        if self._info is None:  # loading takes as long as it takes, unless somebody stops it
            if self._stopping.end([self._watched]):
                logger.error("the engine's process was stopped while it loaded, and is killed")
            return
        try:
            self.check()
        except EngineStopped as error:
            self._stopped = self._stopped or error
            logger.error("the engine's process is killed: %s", error)
            self._process.kill()

    def _end(self) -> None:
        """The process has closed its socket: it has ended, or is about to."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._stop(f"the engine's process ended ({_why(self._process.returncode)})")
        if not self._is_closing:
            logger.error("%s", self._stopped)
        calls, self._calls = self._calls, {}
        for future in list(calls.values()):  # `_ask` may add one, and take it back
            future.set_exception(self._stopped)
        self._control.close()
        if self._info is not None and not self._is_closing:
            self._on_lost()

    def _ask(self, word: str, *fields: Any) -> "Future[Any]":
        call, future = next(self._numbers), Future[Any]()
        future.set_running_or_notify_cancel()  # who waits may leave; the reply still has a place
        self._calls[call] = future
        if self._stopped:
            self._calls.pop(call, None)
            raise self._stopped
        self._send(word, call, *fields)
        return future

    def _send(self, *content: Any) -> None:
        self._unsent.put(pack_frame(list(content)))

    def _stop(self, reason: str) -> None:
        """Keep the first reason that says more than that the process is gone."""
        if self._stopped in (None, self._gone):
            self._stopped = EngineStopped(reason)

    def _lost(self) -> EngineStopped:
        """Take no more requests: nobody reads the steps any more. Returns why."""
        self._stopped = self._stopped or self._gone
        return self._stopped


class _StepReader:
    """Reads the steps' frames on an event loop, and says when there will be no more."""

    def __init__(
        self,
        steps: socket.socket,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[StepOutput], None],
        ended: Callable[[], None],
    ) -> None:
        self._steps, self._loop = steps, loop
        self._take, self._ended = take, ended
        self._frames = FrameReader()
        loop.add_reader(steps.fileno(), self._read)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # that loop is closed
            self._loop.remove_reader(self._steps.fileno())

    def _read(self) -> None:
        try:
            data = self._steps.recv(1 << 18)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self.stop()
            self._ended()
            return
        try:
            for payload in self._frames.feed(data):
                self._take(unpack_step(payload))
        except BadFrame as error:
            logger.error("the engine's process was not understood: %s", error)
            self.stop()
            self._ended()


def _start(control: socket.socket, steps: socket.socket) -> "subprocess.Popen[bytes]":
    descriptors = (control.fileno(), steps.fileno())
    return subprocess.Popen(
        [sys.executable, "-m", "deployments.engine_process.main", *map(str, descriptors)],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        # What this process found its modules by, a runtime environment of Ray included.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def _why(code: int | None) -> str:
    if code is None:
        return "it closed its socket"
    return f"signal {-code}" if code < 0 else f"exit status {code}"
