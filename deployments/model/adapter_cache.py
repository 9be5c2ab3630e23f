"""Adapter versions on a replica's device: loaded when leased, evicted when others need room.

Each version is loaded once, however many ask for it: every caller gets a future, and the load has a
thread to itself. So no caller and no load ever waits for the load of another version. A slot is
taken after the weights were read, so nothing is evicted for a version that cannot be read.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from deployments.engine.errors import EngineError
from deployments.model.adapter_registry import AdapterRegistry, VersionState
from deployments.model.decoder_tasks import TASK_TIMEOUT_S, DecoderTasks
from deployments.model.weights_reader import WeightsReader, one_line

# Seconds that a load waits for a slot while answers hold all of them.
ROOM_TIMEOUT_S = 30.0


class AdapterGone(EngineError):
    """The version is not in the catalogue (any more)."""

    code = "adapter_gone"
    retry_after_s = 1


class AdapterUnavailable(EngineError):
    """The version is in the catalogue, but this replica cannot load it now."""

    code = "adapter_unavailable"
    retry_after_s = 5


class DeviceSlots:
    """The slots of one device: which versions hold one, which are leased, which is evicted.

    No locks: AdapterCache guards it. A version that is being installed has its slot from `reserve`.

    Args:
        capacity: versions on the device at the same time.
    """

    def __init__(self, capacity: int, registry: AdapterRegistry) -> None:
        self.capacity = capacity
        self._registry = registry
        self._resident: OrderedDict[str, None] = OrderedDict()  # least recently leased first
        self._reserved: set[str] = set()
        self._leases: Counter[str] = Counter()

    def __contains__(self, key: str) -> bool:
        """Whether it is on the device."""
        return key in self._resident

    @property
    def has_room(self) -> bool:
        return len(self._resident) + len(self._reserved) < self.capacity

    @property
    def are_all_pinned(self) -> bool:
        """Whether no slot can ever become free, so that waiting for one is useless."""
        held = (*self._resident, *self._reserved)
        return sum(map(self._registry.is_pinned, held)) >= self.capacity

    def num_leases(self, key: str) -> int:
        return self._leases[key]

    def lease(self, key: str) -> None:
        """Lease a resident version, which makes it the most recently used one."""
        self._leases[key] += 1
        self._resident.move_to_end(key)

    def release(self, key: str) -> None:
        self._leases[key] -= 1
        assert self._leases[key] >= 0, f"{key} released more often than leased"
        if not self._leases[key]:
            del self._leases[key]

    def reserve(self, key: str) -> None:
        """Give a slot to a version that is about to be installed."""
        self._reserved.add(key)

    def cancel(self, key: str) -> bool:
        """Free the slot of a load that failed; returns whether it had one."""
        had_slot = key in self._reserved
        self._reserved.discard(key)
        return had_slot

    def arrive(self, key: str) -> None:
        """Make an installed version resident."""
        self._resident[key] = None
        self._reserved.discard(key)

    def evict(self, key: str) -> None:
        del self._resident[key]

    def out_of_service(self) -> list[str]:
        """Return the resident versions that the catalogue no longer has in service."""
        return [key for key in self._resident if key not in self._registry.wanted]

    def select_victim(self) -> str | None:
        """Return the version to evict: out of service first, then the least recently leased.

        Returns None if every resident version is leased or pinned.
        """
        registry = self._registry
        idle = [k for k in self._resident if not self._leases[k] and not registry.is_pinned(k)]
        return next((k for k in idle if k not in registry.wanted), idle[0] if idle else None)


class _Unleased(Future[str]):
    """Waits for a load without taking a lease."""


class AdapterCache:
    """Any thread may call it.

    Args:
        clock: seconds, monotonic.

    Attributes:
        changed: guards `registry`, `slots` and the loads; notified when a slot may be free.
        last_error: the last load that failed.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        reader: WeightsReader,
        tasks: DecoderTasks,
        *,
        capacity: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = threading.Condition()
        self.registry = registry
        self.slots = DeviceSlots(capacity, registry)
        self.last_error: str | None = None
        self._reader = reader
        self._tasks = tasks
        self._clock = clock
        self._loads: dict[str, list[Future[str]]] = {}
        self._new_loads: list[tuple[str, float]] = []

    def is_used(self, key: str) -> bool:
        """Whether it is on the device, on its way there, or leased. Call it with the lock held."""
        return key in self.slots or key in self._loads or self.slots.num_leases(key) > 0

    def acquire(self, key: str) -> "Future[str]":
        """Lease `key` for one answer; the future is done once it is on the device.

        The caller that gets the result must call `release`. A future that was cancelled before
        leases nothing. It fails with AdapterGone or AdapterUnavailable.
        """
        with self.changed:
            if key not in self.slots:
                return self._join_load(key, Future())
            self._lease(key)
        lease: Future[str] = Future()
        lease.set_result(key)
        return lease

    def load(self, key: str) -> None:
        """Load `key` without leasing it, and wait for it; raises what a lease fails with."""
        with self.changed:
            if key in self.slots:
                return
            loaded = self._join_load(key, _Unleased())
        loaded.result()

    def release(self, key: str) -> None:
        """End one lease. A version that is out of service leaves the device with its last one."""
        with self.changed:
            self.slots.release(key)
            self._evict_if_unwanted(key)
            self.changed.notify_all()

    def evict_if_idle(self, key: str) -> None:
        """Evict `key` unless it is leased; returns when the decoder has done it."""
        with self.changed:
            if self.slots.num_leases(key) or key not in self.slots:
                return
            evicted = self._evict(key)
        evicted.result(TASK_TIMEOUT_S)

    def take_loads(self) -> list[tuple[str, float]]:
        """Return (adapter, seconds) of each load since the last call. The lock is held."""
        loads, self._new_loads = self._new_loads, []
        return loads

    # --- one load, on its own thread ---

    def _join_load(self, key: str, waiting: "Future[str]") -> "Future[str]":
        """Let `waiting` wait for the load of `key`, which begins now if none is under way."""
        state = self.registry.get(key)
        if state is None:
            waiting.set_exception(AdapterGone(f"adapter {key} left the catalogue: ask again"))
        elif key in self._loads:
            self._loads[key].append(waiting)
        else:
            work = threading.Thread(target=self._run_load, args=(key, state), daemon=True)
            work.start()
            self._loads[key] = [waiting]
        return waiting

    def _run_load(self, key: str, state: VersionState) -> None:
        started = self._clock()
        try:
            weights = self._reader.weights(state.version)
            self._reserve_slot(key)
            self._tasks.install(key, state.version, weights)
        except Exception as error:
            self._finish_failed(key, state, error)
        else:
            self._finish(key, state, self._clock() - started)

    def _reserve_slot(self, key: str) -> None:
        """Take a slot for `key`; the least recently used idle version is evicted for it."""
        deadline = self._clock() + ROOM_TIMEOUT_S
        with self.changed:
            while not self.slots.has_room:
                victim = self.slots.select_victim()
                if victim is not None:
                    self._evict(victim)
                    break
                if self.slots.are_all_pinned:
                    raise self._full("hold pinned ones: unpin an adapter")
                if self._clock() > deadline:
                    raise self._full("are in use or pinned: ask again")
                self.changed.wait(0.2)
            self.slots.reserve(key)

    def _full(self, why: str) -> AdapterUnavailable:
        all_places = f"all {self.slots.capacity} places for adapters"
        return AdapterUnavailable(f"{all_places} {why}, or raise engine.max_adapters")

    def _finish(self, key: str, state: VersionState, seconds: float) -> None:
        with self.changed:
            state.error, state.load_s = None, seconds
            self.slots.arrive(key)
            self._new_loads.append((state.name, seconds))
            waiting = self._not_cancelled(key)
            for future in waiting:
                if not isinstance(future, _Unleased):
                    self._lease(key)
            self._evict_if_unwanted(key)
            self.changed.notify_all()
        for future in waiting:
            future.set_result(key)

    def _finish_failed(self, key: str, state: VersionState, error: Exception) -> None:
        why = f": {error}" if isinstance(error, EngineError) else f" here ({type(error).__name__})"
        failure = AdapterUnavailable(f"adapter {key} cannot be loaded{why}")
        failure.__cause__ = error
        with self.changed:
            state.error = self.last_error = one_line(error)
            if self.slots.cancel(key):
                self._tasks.evict(key)  # an install that took too long may still be done
            waiting = self._not_cancelled(key)
            self.changed.notify_all()
        for future in waiting:
            future.set_exception(failure)

    # --- with the lock held ---

    def _not_cancelled(self, key: str) -> list["Future[str]"]:
        """End the load of `key`; returns the futures that still wait for it."""
        return [f for f in self._loads.pop(key) if f.set_running_or_notify_cancel()]

    def _lease(self, key: str) -> None:
        self.slots.lease(key)
        self.registry[key].num_answers += 1

    def _evict_if_unwanted(self, key: str) -> None:
        is_idle = key in self.slots and not self.slots.num_leases(key)
        if is_idle and key not in self.registry.wanted:
            self._evict(key)

    def _evict(self, key: str) -> "Future[Any]":
        """Free the slot and submit the eviction under one lock: the decoder sees versions leave
        and arrive in the order in which their slots are counted."""
        self.slots.evict(key)
        return self._tasks.evict(key)
