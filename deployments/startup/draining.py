"""Let the answers in progress finish before Serve is shut down.

This runs in the process that `serve run` runs in, as its answer to Ctrl-C. The routers are asked
through Serve's broadcast, so it works under every HTTP ingress and needs no key.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

ROUTER = "Router"
_PREPARE_S = 0.5
_CALL_TIMEOUT_S = 2.0
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

    def prepare(self) -> None:
        """Get the handle on a thread once the application runs. Later it may be too late: without
        Ray's GCS no handle can be made, but one that was made still works."""
        threading.Thread(target=self._prepare, name="drain", daemon=True).start()

    def run(self) -> None:
        """Return when no request is in progress, the time is up, or no router answers."""
        deadline = time.monotonic() + self._seconds()
        while self._handle is not None and time.monotonic() < deadline:
            states = self._states()
            if not sum(state["num_running"] for state in states):
                time.sleep(_FLUSH_S)
                return
            time.sleep(_POLL_S)

    def _states(self) -> list[dict[str, Any]]:
        """Return what the routers that answer say; empty if none does."""
        try:
            called = self._handle.broadcast("drain")
            answers = called.results(timeout_s=_CALL_TIMEOUT_S, return_exceptions=True)
        except Exception as error:  # whatever Ray has lost: what cannot be asked is not waited for
            print(f"drain: the routers cannot be asked ({type(error).__name__})", flush=True)
            return []
        return [answer for answer in answers if isinstance(answer, dict)]

    def _prepare(self) -> None:
        from ray import serve

        while self._handle is None:
            time.sleep(_PREPARE_S)
            try:
                found = serve.status().applications.get(self._application)
                if found is not None and str(found.status.value) == "RUNNING":
                    handle = serve.get_deployment_handle(ROUTER, self._application)
                    handle.broadcast("in_progress").results(timeout_s=_CALL_TIMEOUT_S)
                    self._handle = handle
            except Exception:  # Serve is not up yet, or is changing: it is tried again
                continue


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
