"""Loads of adapter versions onto the device, each on a thread.

Each version is loaded once, however many ask for it: every caller gets a future. So no caller and
no load ever waits for the load of another version. A slot is taken after the weights were read, so
nothing is evicted for a version that cannot be read.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from deployments.engine.errors import EngineError
from deployments.model.adapter_registry import (
    AdapterGone,
    AdapterRegistry,
    AdapterUnavailable,
    DeviceSlots,
    VersionState,
)
from deployments.model.decoder_tasks import DecoderTasks
from deployments.model.weights_reader import WeightsReader, one_line

# Seconds that a load waits for a slot while answers hold all of them.
ROOM_TIMEOUT_S = 30.0


class Unleased(Future[str]):
    """Waits for a load without taking a lease."""


class AdapterLoads:
    """Any thread may call it.

    Args:
        changed: guards the registry, the slots and the loads.
        clock: seconds, monotonic.

    Attributes:
        last_error: the last load that failed.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        slots: DeviceSlots,
        reader: WeightsReader,
        tasks: DecoderTasks,
        changed: threading.Condition,
        clock: Callable[[], float],
    ) -> None:
        self.last_error: str | None = None
        self._registry, self._slots = registry, slots
        self._reader, self._tasks = reader, tasks
        self._changed, self._clock = changed, clock
        self._loads: dict[str, list[Future[str]]] = {}
        self._finished: list[tuple[str, float]] = []

    def __contains__(self, key: str) -> bool:
        """Whether it is being loaded. Call it with the lock held."""
        return key in self._loads

    def __iter__(self) -> Iterator[str]:
        """Iterate over what is being loaded. Call it with the lock held."""
        return iter(self._loads)

    def take_finished(self) -> list[tuple[str, float]]:
        """Return (adapter, seconds) of each load since the last call. The lock is held."""
        finished, self._finished = self._finished, []
        return finished

    def join(self, key: str, waiting: "Future[str]") -> "Future[str]":
        """Let `waiting` wait for the load of `key`, which begins now if none is under way.

        Call it with the lock held.
        """
        state = self._registry.get(key)
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
        with self._changed:
            while not self._slots.has_room:
                victim = self._slots.select_victim()
                if victim is not None:
                    self._slots.evict(victim)
                    break
                if self._slots.are_all_pinned:
                    raise self._full("hold pinned ones: unpin an adapter")
                if self._clock() > deadline:
                    raise self._full("are in use or pinned: ask again")
                self._changed.wait(0.2)
            self._slots.reserve(key)

    def _full(self, why: str) -> AdapterUnavailable:
        all_places = f"all {self._slots.capacity} places for adapters"
        return AdapterUnavailable(f"{all_places} {why}, or raise engine.max_adapters")

    def _finish(self, key: str, state: VersionState, seconds: float) -> None:
        with self._changed:
            state.error, state.load_s = None, seconds
            self._slots.arrive(key)
            self._finished.append((state.name, seconds))
            waiting = self._not_cancelled(key)
            for future in waiting:
                if not isinstance(future, Unleased):
                    self._slots.lease(key)
            self._slots.evict_if_unwanted(key)
            self._changed.notify_all()
        for future in waiting:
            future.set_result(key)

    def _finish_failed(self, key: str, state: VersionState, error: Exception) -> None:
        why = f": {error}" if isinstance(error, EngineError) else f" here ({type(error).__name__})"
        failure = AdapterUnavailable(f"adapter {key} cannot be loaded{why}")
        failure.__cause__ = error
        with self._changed:
            state.error = self.last_error = one_line(error)
            if self._slots.cancel(key):
                self._tasks.evict(key)  # an install that took too long may still be done
            waiting = self._not_cancelled(key)
            self._changed.notify_all()
        for future in waiting:
            future.set_exception(failure)

    def _not_cancelled(self, key: str) -> list["Future[str]"]:
        """End the load of `key`; returns the futures that still wait for it. The lock is held."""
        return [f for f in self._loads.pop(key) if f.set_running_or_notify_cancel()]
