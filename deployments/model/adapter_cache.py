"""Adapter versions on a replica's device: loaded when leased, evicted when others need room.

Each version is loaded once, however many ask for it: every caller gets a future, and the load has a
thread to itself. So no caller and no load ever waits for the load of another version. A slot is
taken after the weights were read, so nothing is evicted for a version that cannot be read.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from adapters.live_catalog import AdapterVersion
from deployments.engine.request import EngineError, EngineStopped
from deployments.model.adapter_registry import AdapterRegistry, VersionState
from deployments.model.device_slots import DeviceSlots
from deployments.model.weights_reader import AdapterDecoder, WeightsReader, one_line

# Seconds that a load waits for a slot while answers hold all of them.
ROOM_TIMEOUT_S = 30.0
# Seconds for one change of the decoder. The first install on a GPU may compile kernels.
TASK_TIMEOUT_S = 300.0

RunBetweenSteps = Callable[[Callable[[], Any]], "Future[Any]"]


class AdapterGone(EngineError):
    """The version is not in the catalogue (any more)."""

    code = "adapter_gone"
    retry_after_s = 1


class AdapterUnavailable(EngineError):
    """The version is in the catalogue, but this replica cannot load it now."""

    code = "adapter_unavailable"
    retry_after_s = 5


@dataclass(slots=True)
class _Load:
    """A load under way, and the leases that wait for it."""

    done: "Future[None]" = field(default_factory=Future)
    leases: list["Future[str]"] = field(default_factory=list)


class AdapterCache:
    """Any thread may call it.

    Args:
        run: runs a task on the engine's thread, between two steps.
        clock: seconds, monotonic.

    Attributes:
        changed: guards `registry`, `slots` and the loads; notified when a slot may be free.
        last_error: the last load that failed.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        reader: WeightsReader,
        decoder: AdapterDecoder,
        *,
        capacity: int,
        run: RunBetweenSteps,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = threading.Condition()
        self.registry = registry
        self.slots = DeviceSlots(capacity, registry)
        self.last_error: str | None = None
        self._reader = reader
        self._decoder = decoder
        self._run = run
        self._clock = clock
        self._loads: dict[str, _Load] = {}
        self._probed: set[str] = set()  # digests of contents that passed the probe here
        self._new_loads: list[tuple[str, float]] = []

    def is_used(self, key: str) -> bool:
        """Whether it is on the device, on its way there, or leased. Call it with the lock held."""
        return key in self.slots or key in self._loads or self.slots.num_leases(key) > 0

    def acquire(self, key: str) -> "Future[str]":
        """Lease `key` for one answer; the future is done once it is on the device.

        Whoever gets the result calls `release`. A future that was cancelled before that leases
        nothing. It fails with AdapterGone or AdapterUnavailable.
        """
        lease: Future[str] = Future()
        with self.changed:
            if key in self.slots:
                self._lease(key)
                lease.set_result(key)
                return lease
            try:
                self._join_load(key).leases.append(lease)
            except AdapterGone as error:
                lease.set_exception(error)
        return lease

    def load(self, key: str) -> "Future[None]":
        """Load `key` without leasing it; fails as `acquire` does."""
        with self.changed:
            try:
                return self._join_load(key).done
            except AdapterGone as error:
                gone: Future[None] = Future()
                gone.set_exception(error)
                return gone

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

    def dry_run(self, key: str, version: AdapterVersion) -> list[str]:
        """Return what keeps a version from being served here; empty if nothing does.

        Raises:
            StorageError, EngineStopped: it could not be tried.
        """
        try:
            weights = self._reader.weights(version)
            self._run(lambda: self._decoder.dry_run(key, weights)).result(TASK_TIMEOUT_S)
        except (OSError, EngineStopped):
            raise
        except EngineError as error:
            problems = getattr(error, "problems", None)
            return list(problems) if problems else [str(error)]
        except Exception as error:  # PEFT, safetensors and torch each have kinds of their own
            return [f"{type(error).__name__}: {one_line(error)}"]
        self._probed.add(version.digest)
        return []

    def forget(self, version: AdapterVersion) -> None:
        """Drop what is kept of a version that left the catalogue."""
        self._reader.forget(version)
        self._probed.discard(version.digest)

    def new_loads(self) -> list[tuple[str, float]]:
        """Return (adapter, seconds) of each load since the last call."""
        with self.changed:
            loads, self._new_loads = self._new_loads, []
        return loads

    # --- one load, on its own thread ---

    def _join_load(self, key: str) -> _Load:
        """Return the load of `key` that is under way, or start one. The lock is held.

        Raises:
            AdapterGone
        """
        load = self._loads.get(key)
        if load is None:
            state = self.registry.get(key)
            if state is None:
                raise AdapterGone(f"adapter {key} left the catalogue: ask again")
            load = _Load()
            threading.Thread(
                target=self._run_load, args=(key, state), name="load-adapter", daemon=True
            ).start()
            self._loads[key] = load
        return load

    def _run_load(self, key: str, state: VersionState) -> None:
        started = self._clock()
        try:
            weights = self._reader.weights(state.version)
            self._reserve_slot(key)
            self._install(key, state.version, weights)
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
                self._check_patience(deadline)
                self.changed.wait(0.2)
            self.slots.reserve(key)

    def _check_patience(self, deadline: float) -> None:
        capacity = self.slots.capacity
        if self.slots.are_all_pinned:
            raise AdapterUnavailable(
                f"all {capacity} places for adapters hold pinned ones: unpin an adapter, or raise "
                "engine.max_adapters"
            )
        if self._clock() > deadline:
            raise AdapterUnavailable(
                f"all {capacity} places for adapters are in use or pinned: ask again, or raise "
                "engine.max_adapters"
            )

    def _install(self, key: str, version: AdapterVersion, weights: Any) -> None:
        """Put the weights into the decoder; contents that were probed here are not probed again."""
        probe = version.digest not in self._probed
        task = self._run(lambda: self._decoder.install(key, weights, probe=probe))
        task.result(TASK_TIMEOUT_S)
        self._probed.add(version.digest)

    def _finish(self, key: str, state: VersionState, seconds: float) -> None:
        with self.changed:
            load = self._loads.pop(key)
            state.error, state.load_s = None, seconds
            self.slots.arrive(key)
            self._new_loads.append((state.name, seconds))
            # A lease that was cancelled meanwhile is none.
            granted = [lease for lease in load.leases if lease.set_running_or_notify_cancel()]
            for _ in granted:
                self._lease(key)
            self._evict_if_unwanted(key)
            self.changed.notify_all()
        load.done.set_result(None)
        for lease in granted:
            lease.set_result(key)

    def _finish_failed(self, key: str, state: VersionState, error: Exception) -> None:
        why = f": {error}" if isinstance(error, EngineError) else f" here ({type(error).__name__})"
        failure = AdapterUnavailable(f"adapter {key} cannot be loaded{why}")
        failure.__cause__ = error
        with self.changed:
            load = self._loads.pop(key)
            state.error = self.last_error = one_line(error)
            if self.slots.cancel(key):
                self._evict_from_decoder(key)  # an install that took too long may still be done
            self.changed.notify_all()
        waiting: list[Future[Any]] = [load.done, *load.leases]
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(failure)

    # --- with the lock held ---

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
        return self._evict_from_decoder(key)

    def _evict_from_decoder(self, key: str) -> "Future[Any]":
        def evict() -> None:
            # Not in the decoder: its install failed, and nothing is left to do.
            with contextlib.suppress(EngineError, KeyError):
                self._decoder.evict(key)

        try:
            return self._run(evict)
        except EngineStopped:  # and with it the device's memory
            stopped: Future[Any] = Future()
            stopped.set_result(None)
            return stopped
