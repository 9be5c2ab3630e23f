"""Deadlines that were set by another machine's clock."""

import platform
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

_NUM_HEARD = 30  # heartbeats; with one a second, a clock that was set is known half a minute later
_MAX_SENDERS = 1024
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # proc(5): one for each boot of a kernel


def machine_name() -> str:
    """Return what the processes that share this machine's clock have in common."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else platform.node()


def sender_name(name: str) -> str:
    """Return the name under which a process of this machine sends."""
    return f"{name}@{machine_name()}"


class ClockOffsets:
    """How far this clock is ahead of other machines', from messages that say when they were sent.

    The smallest of the latest differences is taken: a message may wait on its way, and never
    arrives early. A sender on this machine has our clock, and the first message that a process
    gets may have waited for its start. Any thread may use it.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ours = "@" + machine_name()
        self._heard: OrderedDict[str, deque[float]] = OrderedDict()

    def hear(self, sender: str, sent_at: float) -> None:
        """Note a message that `sender` (of `sender_name`) sent at `sent_at`, by its clock."""
        if sender.endswith(self._ours):
            return
        differences = self._heard.setdefault(sender, deque(maxlen=_NUM_HEARD))
        differences.append(self._clock() - sent_at)
        while len(self._heard) > _MAX_SENDERS:
            self._heard.popitem(last=False)

    def seconds_left(self, deadline_at: float | None, sender: str | None) -> float | None:
        """Return the time until a moment of the sender's clock; of ours, if it was never heard."""
        if deadline_at is None:
            return None
        differences = list(self._heard.get(sender, ())) if sender is not None else []
        return deadline_at + min(differences, default=0.0) - self._clock()
