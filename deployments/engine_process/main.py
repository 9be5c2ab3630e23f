"""The engine's process: `python -m deployments.engine_process.main CONTROL_FD STEPS_FD`.

It ends when the replica closes the control socket or dies, and ends a replica that is stopped.
"""

import functools
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from deployments.channel.frames import FrameReader, load_frame, pack_frame
from deployments.engine.core import EngineLimits, ThreadCore
from deployments.engine.errors import EngineStopped
from deployments.engine.request import StepOutput
from deployments.engine.thread import TorchThread, use_cores_on
from deployments.engine_process.decoder_loading import DecoderSpec, load_decoder
from deployments.engine_process.wire import (
    pack_error,
    pack_info,
    pack_step,
    parts_of,
    unpack_request,
)
from deployments.interpreter import tune_interpreter
from deployments.stopped import StoppedProcesses

PULSE_S = 0.5
_LOOK_S = 1.0  # between two looks at the replica
# Adapters that are read at the same time; the replica asks for no more.
_NUM_READERS = 16


class EngineServer:
    """Does what the replica asks for, in the order in which it asks.

    Args:
        control: both ways.
        steps: takes what each step makes. The engine's thread writes to it.
    """

    def __init__(self, control: socket.socket, steps: socket.socket) -> None:
        self._control = control
        self._steps = steps
        self._sending = threading.Lock()
        self._thread = TorchThread()
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="adapter-read")
        self._core: ThreadCore | None = None
        self._decoder: Any = None
        self._weights: dict[int, Any] = {}
        self._handles = itertools.count(1)
        self._known: frozenset[str] = frozenset()  # resident adapters that the replica knows of
        self._operations: dict[str, Callable[..., None]] = {
            "install": lambda name, handle, probe: self._decoder.install(
                name, self._weights[handle], probe=probe
            ),
            "dry_run": lambda name, handle: self._decoder.dry_run(name, self._weights[handle]),
            "evict": lambda name: self._decoder.evict(name),
            "warm_up": self._warm_up,
        }
        self._commands: dict[str, Callable[..., None]] = {
            "start": self._start,
            "add": self._add,
            "abort": lambda number: self._running.abort(number),
            "call": self._call,
            "prepare": lambda call, grammar: self._reply(call, self._running.prepare(grammar)),
            "forget": lambda handle: self._weights.pop(handle, None),
        }

    def run(self) -> None:
        """Serve until the replica closes its end."""
        reader = FrameReader()
        while data := self._control.recv(1 << 16):
            for payload in reader.feed(data):
                command, *arguments = load_frame(payload)
                self._commands[command](*arguments)

    def send(self, *content: Any) -> None:
        """Send one frame to the replica. Any thread may call it."""
        with self._sending:
            self._control.sendall(pack_frame(list(content)))

    @property
    def _running(self) -> ThreadCore:
        assert self._core is not None, "a command before the start"
        return self._core

    def _start(self, call: int, spec: dict[str, Any], limits: dict[str, Any]) -> None:
        wanted = DecoderSpec(**spec)
        if wanted.device == "cpu":
            use_cores_on(self._thread, wanted.cpu_threads)

        def load() -> dict[str, Any]:
            self._decoder = load_decoder(wanted)
            self._core = ThreadCore(
                self._decoder, EngineLimits(**limits), thread=self._thread, deliver=self._deliver
            )
            self._core.start()
            threading.Thread(target=self._pulse, name="pulse", daemon=True).start()
            self._known = self._decoder.info.adapters
            return pack_info(self._decoder.info)

        self._reply(call, self._thread.submit(load))

    def _add(self, number: int, *fields: Any) -> None:
        self._running.add(number, unpack_request(*fields))

    def _call(self, call: int, operation: str, *arguments: Any) -> None:
        if operation == "read":
            self._reply(call, self._readers.submit(self._read, *arguments))
        else:
            task = functools.partial(self._operate, operation, arguments)
            self._reply(call, self._running.run_between_steps(task))

    def _read(self, directory: str) -> list[int]:
        weights = self._decoder.read_adapter(Path(directory))
        handle = next(self._handles)
        self._weights[handle] = weights
        return [handle, self._decoder.num_host_bytes(weights)]

    # --- between two steps, on the engine's thread ---

    def _operate(self, operation: str, arguments: Sequence[Any]) -> None:
        """Change the decoder, and tell the replica which adapters came and went."""
        try:
            self._operations[operation](*arguments)
        finally:
            now = self._decoder.info.adapters
            if now is not self._known:
                self.send("resident", list(now - self._known), list(self._known - now))
                self._known = now

    def _warm_up(self) -> None:
        warm_up = getattr(self._decoder, "warm_up", None)
        if warm_up is not None:
            warm_up()
        tune_interpreter()

    # --- to the replica ---

    def _reply(self, call: int, future: "Future[Any]") -> None:
        def send(done: "Future[Any]") -> None:
            error = done.exception()
            if error is None:
                self.send("reply", call, done.result())
            else:
                self.send("failure", call, pack_error(error))

        future.add_done_callback(send)

    def _deliver(self, output: StepOutput) -> None:
        for part in parts_of(output):
            self._steps.sendall(pack_step(part))

    def _pulse(self) -> None:
        """Show that this process is alive, what its engine does and for how long; end the process
        once the engine can no longer serve."""
        while True:
            try:
                self._running.check()
            except EngineStopped as error:
                self.send("stopped", str(error))
                os._exit(1)
            pulse = self._running.pulse
            self.send("pulse", pulse.doing, pulse.since)
            time.sleep(PULSE_S)


class ReplicaLogHandler(logging.Handler):
    """Sends records to the replica, which writes them where its own go."""

    def __init__(self, server: EngineServer) -> None:
        super().__init__()
        self._server = server

    def emit(self, record: logging.LogRecord) -> None:
        try:
            request_id = getattr(record, "request_id", None)
            content = (record.levelno, record.name, self.format(record), request_id)
            self._server.send("log", *content)
        except (OSError, ValueError):  # the replica is gone; or no text that can be sent
            self.handleError(record)


def _end_if_stopped(replica: psutil.Process) -> None:
    """Kill the replica, and so end this process, once somebody has stopped it for too long."""
    watch = StoppedProcesses()
    while not watch.end([replica]):
        time.sleep(_LOOK_S)
    print(f"the replica (pid {replica.pid}) was stopped for too long: killed", file=sys.stderr)


def main(control_fd: int, steps_fd: int) -> None:
    replica = psutil.Process(os.getppid())
    threading.Thread(target=_end_if_stopped, args=(replica,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the replica says when to end
    control, steps = socket.socket(fileno=control_fd), socket.socket(fileno=steps_fd)
    server = EngineServer(control, steps)
    logging.basicConfig(
        level=logging.WARNING, handlers=[ReplicaLogHandler(server)], format="%(message)s"
    )
    for name in ("adapters", "deployments"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        server.run()
    finally:
        os._exit(0)  # without waiting for a step


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
