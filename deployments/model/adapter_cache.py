"""Puts versions on a replica's device, keeps them there while they answer, and makes room.

Whoever asks for a version that is not there loads it, on its own thread; the others who ask for the
same one wait. The place comes after the read, so nobody leaves for a version that cannot be read.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from deployments.engine.request import EngineError
from deployments.model.adapter_loader import ERRAND_TIMEOUT_S, AdapterLoader, one_line
from deployments.model.adapter_registry import AdapterRegistry, VersionState
from deployments.model.device_places import DevicePlaces

ROOM_TIMEOUT_S = 30.0


class AdapterGone(EngineError):
    """The version is not in the catalogue (any more)."""

    code = "adapter_gone"
    retry_after_s = 1


class AdapterUnavailable(EngineError):
    """The version is in the catalogue, and this replica cannot load it now."""

    code = "adapter_unavailable"
    retry_after_s = 5


class AdapterCache:
    """Any thread may call it.

    changed: guards `known`, `places` and what follows them here.
    """

    def __init__(
        self,
        known: AdapterRegistry,
        places: DevicePlaces,
        loader: AdapterLoader,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = threading.Condition()
        self.known = known
        self.places = places
        self.last_error: str | None = None
        self._loader = loader
        self._clock = clock
        self._new_loads: list[tuple[str, float]] = []

    def try_acquire(self, key: str) -> bool:
        """Lease `key` if it is on the device."""
        with self.changed:
            if key not in self.places:
                return False
            self.places.take(key)
            return True

    def acquire(self, key: str) -> None:
        """On return `key` is on the device and leased."""
        with self.changed:
            while self.places.is_loading(key):
                self.changed.wait(1.0)
            if key in self.places:
                self.places.take(key)
                return
            known = self.known.get(key)
            if known is None:
                raise AdapterGone(f"adapter {key} left the catalogue: ask again")
            self.places.start_loading(key)
        try:
            seconds = self._load(key, known)
        except Exception as error:
            known.error = self.last_error = one_line(error)
            with self.changed:
                self._stop_loading(key)
                self._loader.evict(key)  # an install that took too long may yet come
            if isinstance(error, EngineError):
                raise AdapterUnavailable(f"adapter {key} cannot be loaded: {error}") from error
            raise AdapterUnavailable(
                f"adapter {key} cannot be loaded here ({type(error).__name__})"
            ) from error
        known.error, known.load_s = None, seconds
        with self.changed:
            self._stop_loading(key)
            self.places.arrive(key)
            self.places.take(key)
            self._new_loads.append((known.name, seconds))

    def _stop_loading(self, key: str) -> None:
        """With the lock held."""
        self.places.stop_loading(key)
        self.changed.notify_all()

    def _load(self, key: str, known: VersionState) -> float:
        """Seconds that it took."""
        started = self._clock()
        weights = self._loader.weights(known.version)  # nobody has made room yet
        self._make_room(key)
        self._loader.install(key, known.version, weights)
        return self._clock() - started

    def _make_room(self, key: str) -> None:
        """A place for `key`: the least recently used idle version goes."""
        deadline = self._clock() + ROOM_TIMEOUT_S
        while True:
            with self.changed:
                if self.places.has_room:
                    self.places.reserve(key)
                    return
                victim = self.places.victim()
                if victim is not None:
                    self._leave(victim)
                    self.places.reserve(key)
                    return
                self._check_patience(deadline)
                self.changed.wait(0.2)

    def _check_patience(self, deadline: float) -> None:
        capacity = self.places.capacity
        if self.places.are_all_pinned:
            raise AdapterUnavailable(
                f"all {capacity} places for adapters hold pinned ones: unpin an adapter, or raise "
                "engine.max_adapters"
            )
        if self._clock() > deadline:
            raise AdapterUnavailable(
                f"all {capacity} places for adapters are in use or pinned: ask again, or raise "
                "engine.max_adapters"
            )

    def _leave(self, key: str) -> "Future[Any]":
        """With the lock held until it is submitted, so that the decoder sees versions leave and
        come in the order in which their places are counted."""
        self.places.leave(key)
        return self._loader.evict(key)

    def release(self, key: str) -> None:
        """The answer has ended. A version that is out of service leaves with its last answer."""
        with self.changed:
            is_last = self.places.give_back(key)
            self.changed.notify_all()
            if is_last and key in self.places and key not in self.known.wanted:
                self._leave(key)

    def evict_if_idle(self, key: str) -> None:
        with self.changed:
            if self.places.num_leases(key) or key not in self.places:
                return
            left = self._leave(key)
        left.result(ERRAND_TIMEOUT_S)

    def new_loads(self) -> list[tuple[str, float]]:
        """(adapter, seconds) of each load since the last call."""
        with self.changed:
            loads, self._new_loads = self._new_loads, []
        return loads
