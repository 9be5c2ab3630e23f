"""Let the answers in progress finish before Serve is shut down.

This runs in the process that `serve run` runs in, as its answer to Ctrl-C, and for `launch --stop`
in a process that has joined the cluster. The routers are asked through Serve's broadcast, so it
works under every HTTP ingress and needs no key.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

ROUTER = "Router"
NAMESPACE = "serve"  # Serve's own
_PREPARE_S = 0.5
_CALL_TIMEOUT_S = 2.0
_READY_TIMEOUT_S = 15.0
_POLL_S = 0.2
# For the last bytes of an answer to pass the proxy, once the router has sent them.
_FLUSH_S = 0.3


class Drain:
    """Tells every router replica to admit no request any more, and waits for those in progress.

    Args:
        application: its name in Serve.
        seconds: how long to wait at most; asked when it begins.
    """

    def __init__(self, application: str, seconds: Callable[[], float]) -> None:
        self._application = application
        self._seconds = seconds
        self._handle: Any = None
        self._is_prepared = threading.Event()
        # In Serve's throughput mode a handle belongs to one event loop, where its calls are sent.
        self._loop = asyncio.new_event_loop()

    def prepare(self) -> None:
        """Get the handle on a thread once the application runs. Later it may be too late: without
        Ray's GCS no handle can be made, but one that was made still works."""
        for work in (self._loop.run_forever, self._prepare):
            threading.Thread(target=work, name="drain", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Return whether the routers can be asked, at the latest after `timeout_s`."""
        return self._is_prepared.wait(timeout_s)

    def run(self) -> None:
        """Return when no request is in progress, the time is up, or no router can be asked."""
        deadline = time.monotonic() + self._seconds()
        while self._handle is not None and time.monotonic() < deadline:
            try:
                states = self._call("drain")
            except TimeoutError:  # one of them hangs; others may be at work
                continue
            except Exception as error:  # whatever Ray has lost
                print(f"drain: the routers cannot be asked ({type(error).__name__})", flush=True)
                return
            if not sum(state["num_running"] for state in states):
                time.sleep(_FLUSH_S)
                return
            time.sleep(_POLL_S)

    def _call(self, method: str) -> list[dict[str, Any]]:
        """Return what the routers that are there say."""

        async def ask() -> list[Any]:
            called = self._handle.broadcast(method)
            found = await called.results_async(timeout_s=_CALL_TIMEOUT_S, return_exceptions=True)
            return list(found)

        asked = asyncio.run_coroutine_threadsafe(ask(), self._loop)
        answers = asked.result(2 * _CALL_TIMEOUT_S)
        return [answer for answer in answers if isinstance(answer, dict)]

    def _prepare(self) -> None:
        from ray import serve

        handle = None
        while handle is None:
            time.sleep(_PREPARE_S)
            try:
                found = serve.status().applications.get(self._application)
                if found is not None and str(found.status.value) == "RUNNING":
                    handle = serve.get_deployment_handle(ROUTER, self._application)
            except Exception:  # Serve is not up yet, or is changing: it is tried again
                continue
        self._handle = handle
        self._warm()
        self._is_prepared.set()

    def _warm(self) -> None:
        """Send a first call, with which Serve looks the routers up."""
        try:
            self._call("in_progress")
        except Exception as error:  # `run` tries it again
            print(f"drain: the routers do not answer yet ({type(error).__name__})", flush=True)


class StopError(Exception):
    """Nothing was stopped; the text says why and what to do."""


def drain_and_shut_down(drain: Drain, application: str) -> None:
    """Drain a Serve that `ray start` runs on, and shut it down; Ray itself stays.

    Raises:
        StopError: no Ray that runs here, or the application does not.
    """
    import ray
    from ray import serve

    try:
        ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level="warning")
    except ConnectionError as error:
        raise StopError(
            f"no Ray of this user runs here ({error}): run this on a machine where `ray start` "
            "has; a clinic that the launcher has started ends with its launcher (Ctrl-C, SIGTERM)"
        ) from None
    try:
        drain.prepare()
        if not drain.wait(_READY_TIMEOUT_S):
            raise StopError(
                f"application {application} does not run, so nothing can be drained: see `serve "
                "status`; `serve shutdown` ends everything at once"
            )
        drain.run()
        serve.shutdown()
    finally:
        ray.shutdown()


def on_interrupt(drain: Drain) -> None:
    """Make SIGINT drain before it becomes a KeyboardInterrupt; a second one does not wait."""
    has_begun = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal has_begun
        if not has_begun:
            has_begun = True
            drain.run()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
