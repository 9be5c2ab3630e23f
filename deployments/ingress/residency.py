"""Which model replica a question goes to: one that holds its adapter, unless others are idler.

A router replica knows what each model replica holds from its look once a second (model_watch.py),
and what it has sent there itself since then. One that did not answer the look gets no question, and
one that missed two in a row keeps none that it has not begun to answer (call_guard.py).
"""

import functools
import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from deployments.messages import GenerateRequest, held_name

ReplicaT = TypeVar("ReplicaT")

_LOST_AFTER = 2  # looks missed in a row, while another replica answered
_MAX_PLACES = 10_000  # of calls; those that were cancelled on their way are never taken out


class Residency:
    """Any thread may call `saw`; one event loop the rest."""

    def __init__(self) -> None:
        self._held: dict[str, set[str]] = {}
        self._silent: dict[str, int] = {}  # replica -> looks missed in a row
        self._places: dict[int, str] = {}  # id of a call -> its replica
        self._lock = threading.Lock()

    def saw(self, reports: Iterable[Mapping[str, Any]]) -> list[str]:
        """Take over what replicas say that they hold; one that says nothing holds nothing.

        Returns:
            Those that are given up: others answer, and they have not for several looks.
        """
        found = {r["replica"]: set(r.get("adapters_held", ())) for r in reports}
        with self._lock:
            missing = (self._silent.keys() | self._held.keys()) - found.keys()
            self._silent = {name: self._silent.get(name, 0) + 1 for name in missing}
            self._held = found
            return [n for n, missed in self._silent.items() if found and missed >= _LOST_AFTER]

    def answering(
        self, replicas: Sequence[ReplicaT], name: Callable[[ReplicaT], str]
    ) -> list[ReplicaT]:
        """Return those of all the replicas that there are that may be asked: not those that have
        answered a look before, and not the last one; all of them where nobody answers."""
        if not self._silent:
            return list(replicas)
        with self._lock:
            silent = self._silent
            there = set(map(name, replicas))
            self._silent = {n: missed for n, missed in silent.items() if n in there}
        return [replica for replica in replicas if name(replica) not in silent] or list(replicas)

    def chose(self, replica: str, call: GenerateRequest) -> None:
        """Note that a call is on its way to a replica, which may yet be full."""
        if len(self._places) > _MAX_PLACES:
            self._places.clear()
        self._places[id(call)] = replica

    def sent(self, replica: str, call: GenerateRequest) -> None:
        """Note that a replica will hold the call's adapter, since it has taken the call."""
        if call.adapter is not None and replica in self._held:
            self._held[replica].add(_name(call))

    def place_of(self, call: GenerateRequest) -> str | None:
        """Return the replica that was chosen for a call, until `ended`; None: it is not known."""
        return self._places.get(id(call))

    def ended(self, call: GenerateRequest) -> None:
        self._places.pop(id(call), None)

    def holds(self, replica: str, call: GenerateRequest) -> bool:
        return _name(call) in self._held.get(replica, ())


def _name(call: GenerateRequest) -> str:
    assert call.adapter is not None
    return held_name(call.adapter, call.adapter_version)


def ranked(
    replicas: Sequence[ReplicaT],
    holds: Callable[[ReplicaT], bool],
    num_requests: Callable[[ReplicaT], int],
    slack: int,
) -> list[list[ReplicaT]]:
    """Return the replicas to try: of each rank Serve takes the one with fewest requests.

    Two are drawn, as in "power of two choices" (Mitzenmacher, 2001). Before them comes the idler of
    two that hold the adapter, as long as it has at most `slack` requests more than the drawn ones:
    so a cold adapter stays where it is, and a hot one spreads.
    """
    drawn = random.sample(replicas, min(2, len(replicas)))
    holding = [replica for replica in replicas if holds(replica)]
    if not holding or len(holding) == len(replicas):
        return [drawn]
    best = min(random.sample(holding, min(2, len(holding))), key=num_requests)
    if num_requests(best) > min(map(num_requests, drawn)) + slack:
        return [drawn]
    return [[best], drawn]


@functools.cache
def residency() -> Residency:
    """Return what this process knows; Serve makes the request router, and gives it no objects."""
    return Residency()
