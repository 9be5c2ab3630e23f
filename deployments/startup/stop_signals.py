"""Turn Ctrl-C, SIGTERM and a closed terminal into one exception."""

import signal
import time
from types import FrameType

# A terminal that closes sends two signals, its shell's and its own: together they ask once.
_SAME_S = 0.5


class Interrupted(Exception):
    """Ctrl-C, SIGTERM, or the terminal was closed."""


class StopSignals:
    """Turns the first signal that asks us to stop into `Interrupted`, inside its `with` block only.

    A signal that comes before the block is kept for it; later ones raise nothing, since stopping
    has begun. So no signal can hit between the start of a process and the note of its pid.

    Attributes:
        is_urgent: it was asked for again, later than _SAME_S: stop at once.
    """

    def __init__(self) -> None:
        self.is_urgent = False
        self._asked_at: float | None = None
        self._armed = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(signal.SIGHUP, self._handle)

    def __enter__(self) -> None:
        if self._asked_at is not None:
            raise Interrupted
        self._armed = True

    def __exit__(self, *_: object) -> None:
        self._armed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is not None:
            self.is_urgent = self.is_urgent or now - self._asked_at > _SAME_S
            return
        self._asked_at = now
        if self._armed:
            raise Interrupted
