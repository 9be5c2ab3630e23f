"""Turn Ctrl-C, SIGTERM and a closed terminal into one exception."""

import signal
from types import FrameType


class Interrupted(Exception):
    """Ctrl-C, SIGTERM, or the terminal was closed."""


class StopSignals:
    """Turns the first signal that asks us to stop into `Interrupted`, inside its `with` block only.

    A signal that comes before the block is kept for it; later ones change nothing, since stopping
    has begun. So no signal can hit between the start of a process and the note of its pid.
    """

    def __init__(self) -> None:
        self._asked = self._armed = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(signal.SIGHUP, self._handle)

    def __enter__(self) -> None:
        if self._asked:
            raise Interrupted
        self._armed = True

    def __exit__(self, *_: object) -> None:
        self._armed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self._asked = not self._asked, True
        if first and self._armed:
            raise Interrupted
