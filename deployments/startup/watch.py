"""Watch a service that was ready: when must the launcher give it up, so that it is started again?

Serve replaces replicas, proxies and its controller by itself. It cannot replace Ray's own daemons,
and without them requests hang although the HTTP server still accepts them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from deployments.startup.processes import ProcessTree, runs
from deployments.startup.status import Addresses, Probe, probe_readiness

# Whether running answers are waited for once it has ended. Without the GCS they may stand still.
DAEMONS = {"gcs_server": False, "raylet": True}
PERIOD_S = 3.0


@dataclass(frozen=True, slots=True)
class Patience:
    """unanswered_s: without any answer of the application to /readyz.
    unready_s: with answers that say it is not ready, while Serve tries to replace what is lost.
    """

    unanswered_s: float = 30.0
    unready_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a service is given up, and whether its answers in progress can be waited for."""

    cause: str
    can_drain: bool


class ServiceWatch:
    """
    Args:
        ask: asks /readyz once.
        daemons: the processes without which Serve cannot go on.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        ask: Callable[[], Probe],
        daemons: list[psutil.Process],
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._daemons = [(process.name(), process) for process in daemons]
        self._patience = patience
        self._clock = clock
        self._answered_at = self._ready_at = self._asked_at = clock()
        self._num_misses = 0

    @property
    def daemons(self) -> list[psutil.Process]:
        return [process for _, process in self._daemons]

    @classmethod
    def of(cls, addresses: Addresses, tree: ProcessTree, patience: Patience) -> "ServiceWatch":
        """Return the watch of a local cluster that is ready now."""
        return cls(lambda: probe_readiness(addresses), tree.named(DAEMONS), patience)

    def look(self) -> Loss | None:
        """Return why the service must be given up; None as long as it need not be.

        It asks /readyz every PERIOD_S, and looks at the daemons at each call.
        """
        for name, process in self._daemons:
            if not runs(process):
                cause = f"Ray's {name} (pid {process.pid}) has ended: Serve cannot go on without it"
                return Loss(cause, DAEMONS.get(name, False))
        if self._clock() - self._asked_at < PERIOD_S:
            return None
        return self._judge(self._ask())

    def _judge(self, probe: Probe) -> Loss | None:
        now = self._asked_at = self._clock()
        if probe.is_ours:
            self._answered_at, self._num_misses = now, 0
        else:
            self._num_misses += 1
        if probe.is_ready:
            self._ready_at = now
        silent_s, unready_s = now - self._answered_at, now - self._ready_at
        if not probe.is_ours and silent_s > self._patience.unanswered_s:
            return Loss(
                f"/readyz has not been answered for {silent_s:.0f} s ({self._num_misses} times; "
                f"the last: {probe.cause})",
                can_drain=False,
            )
        if probe.is_ours and unready_s > self._patience.unready_s:
            return Loss(f"not ready for {unready_s:.0f} s: {probe.cause}", can_drain=True)
        return None
