"""The adapters of one model replica: which versions it knows, and where each one's weights are.

Tiers, fastest first: the decoder's bank (device), weights read and kept in memory (host), files
that the store hands out (disk; with an object store, fetched first). `sync` follows the catalogue;
`lease` makes sure that a version is on the device and keeps it there until `release`.

An answer leases the version that it begins with, so an update, a roll-back or a removal lets it
finish, and the old version leaves the device with its last answer. A version that left the
catalogue a moment ago can still be leased: a question may be on its way from the router.
"""

import contextlib
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from adapters.live_catalog import AdapterVersion, LiveCatalog
from adapters.store import AdapterStore
from deployments.engine.request import EngineError, EngineStopped
from deployments.host_memory import HostMemory
from deployments.known_versions import Known, KnownVersions, key_of

logger = logging.getLogger(__name__)

ROOM_TIMEOUT_S = 30.0
ERRAND_TIMEOUT_S = 60.0

ResultT = TypeVar("ResultT")
Errand = Callable[[], Any]


class AdapterGone(EngineError):
    """The version is not in the catalogue (any more)."""

    code = "adapter_gone"
    retry_after_s = 1


class AdapterUnavailable(EngineError):
    """The version is in the catalogue, and this replica cannot load it now."""

    code = "adapter_unavailable"
    retry_after_s = 5


class AdapterDecoder(Protocol):
    """What the holder asks of a decoder. All but `read_adapter` run between two steps."""

    def read_adapter(self, directory: Path) -> Any: ...

    def install(self, name: str, weights: Any, *, probe: bool = True) -> None: ...

    def try_out(self, name: str, weights: Any) -> None: ...

    def evict(self, name: str) -> None: ...


class AdapterHolder:
    """Any thread may call it.

    Args:
        capacity: versions on the device at the same time.
        host: keeps weights that were read, within its bytes.
    """

    def __init__(
        self,
        store: AdapterStore,
        base_model: str,
        decoder: AdapterDecoder,
        *,
        capacity: int,
        host: HostMemory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._decoder = decoder
        self._capacity = capacity
        self._host = host
        self._clock = clock
        self._submit: Callable[[Errand], Future[Any]] = _at_once
        self._syncing = threading.Lock()
        self._changed = threading.Condition()  # guards everything below
        self._known = KnownVersions(base_model)
        self._resident: OrderedDict[str, None] = OrderedDict()  # least recently leased first
        self._loading: set[str] = set()  # being read or installed, by whoever asked first
        self._installing: set[str] = set()  # of those, the ones that have a place
        self._leases: Counter[str] = Counter()
        self._probed: set[str] = set()
        self._last_error: str | None = None
        self._new_loads: list[tuple[str, float]] = []

    def attach(self, between_steps: Callable[[Errand], Future[Any]]) -> None:
        """From now on the decoder is changed through the running engine."""
        self._submit = between_steps

    # --- following the catalogue ---

    def sync(self) -> dict[str, Any]:
        """Read the catalogue and become what it says; returns `report()`. One at a time.

        What cannot be loaded is in the report, and is tried again by the next call.

        Raises:
            StateError, LiveCatalogError: the catalogue cannot be read; all stays as it was.
        """
        with self._syncing:
            try:
                catalog = self._store.read()
            except (OSError, ValueError) as error:
                self._last_error = str(error)
                raise
            fresh = self._follow(catalog)
            for key in self._idle_and_unwanted():
                self._evict(key)
            for key in self._known.wanted:
                with self._changed:
                    has_room = len(self._resident) + len(self._installing) < self._capacity
                    is_due = has_room or key in fresh or self._known[key].error is not None
                    is_due = is_due and key not in self._resident
                if is_due:
                    self._load_in_sync(key)
            return self.report()

    def is_behind(self, stamp_seen: str | None) -> bool:
        """Whether `sync` has something to do: the catalogue changed, or a load failed."""
        with self._changed:
            failed = any(self._known[key].error for key in self._known.wanted)
        return failed or self._store.stamp() != stamp_seen

    def stamp(self) -> str | None:
        return self._store.stamp()

    def _follow(self, catalog: LiveCatalog) -> set[str]:
        """Take the catalogue over; returns the keys that were not wanted before."""
        with self._changed:
            fresh, forgotten = self._known.follow(
                catalog, self._clock(), lambda key: key in self._leases or key in self._loading
            )
        for known in forgotten:
            self._host.drop(known.version.digest)
            self._probed.discard(known.version.digest)
        return fresh

    def _load_in_sync(self, key: str) -> None:
        try:
            self._acquire(key, is_answer=False)
        except EngineError as error:
            logger.error("adapter %s: %s", key, error)
        else:
            self.release(key)

    # --- answers ---

    def try_lease(self, name: str, version: str | None) -> str | None:
        """The key of a version that is on the device, leased; None: `lease` may have to load it."""
        with self._changed:
            key = self._known.find(name, version)
            if key is None or key not in self._resident:
                return None
            self._take(key)
            return key

    def lease(self, name: str, version: str | None) -> str:
        """The decoder's key of a version, which stays on the device until `release`. May load.

        Args:
            version: None: the one in force.

        Raises:
            AdapterGone, AdapterUnavailable
        """
        with self._changed:
            key = self._known.find(name, version)
        if key is None:  # the router may know more
            with contextlib.suppress(OSError, ValueError):
                self.sync()
            with self._changed:
                key = self._known.find(name, version)
        if key is None:
            shown = name if version is None else f"{name}, version {version}"
            raise AdapterGone(f"adapter {shown} is not in service: ask again")
        self._acquire(key)
        return key

    def release(self, key: str) -> None:
        """The answer has ended. A version that is out of service leaves with its last answer."""
        with self._changed:
            self._leases[key] -= 1
            assert self._leases[key] >= 0, f"{key} released more often than leased"
            is_last = not self._leases[key]
            if is_last:
                del self._leases[key]
            self._changed.notify_all()
            leaves = is_last and key in self._resident and key not in self._known.wanted
            if leaves:
                self._leave(key)

    def _take(self, key: str, is_answer: bool = True) -> None:
        self._leases[key] += 1
        self._resident.move_to_end(key)
        self._known[key].num_answers += is_answer

    def _acquire(self, key: str, *, is_answer: bool = True) -> None:
        """On return `key` is resident and leased."""
        with self._changed:
            while key in self._loading:
                self._changed.wait(1.0)
            if key in self._resident:
                self._take(key, is_answer)
                return
            known = self._known.get(key)
            if known is None:
                raise AdapterGone(f"adapter {key} left the catalogue: ask again")
            self._loading.add(key)
        try:
            started = self._clock()
            self._load(key, known)
        except Exception as error:
            known.error = self._last_error = _one_line(error)
            with self._changed:
                self._stop_loading(key)
                self._submit(self._eviction(key))  # an install that took too long may yet come
            if isinstance(error, EngineError):
                raise AdapterUnavailable(f"adapter {key} cannot be loaded: {error}") from error
            raise AdapterUnavailable(
                f"adapter {key} cannot be loaded here ({type(error).__name__})"
            ) from error
        known.error, known.load_s = None, self._clock() - started
        with self._changed:
            self._stop_loading(key)
            self._resident[key] = None
            self._take(key, is_answer)
            self._new_loads.append((known.name, known.load_s))

    def _stop_loading(self, key: str) -> None:
        with self._changed:
            self._loading.discard(key)
            self._installing.discard(key)
            self._changed.notify_all()

    def _load(self, key: str, known: Known) -> None:
        digest = known.version.digest
        weights = self._weights(known.version)  # may take long: nobody has made room yet
        self._make_room(key)
        self._run(lambda: self._decoder.install(key, weights, probe=digest not in self._probed))
        self._probed.add(digest)

    def _weights(self, version: AdapterVersion) -> Any:
        weights = self._host.get(version.digest)
        if weights is None:
            weights = self._decoder.read_adapter(self._store.folder(version))
            self._host.put(version.digest, weights, version.num_bytes)
        return weights

    def _make_room(self, key: str) -> None:
        """A place for `key`: the least recently used idle version goes."""
        deadline = self._clock() + ROOM_TIMEOUT_S
        while True:
            with self._changed:
                if len(self._resident) + len(self._installing) < self._capacity:
                    self._installing.add(key)
                    return
                idle = [key for key in self._resident if not self._leases[key]]
                if not idle:
                    if self._clock() > deadline:
                        raise AdapterUnavailable(
                            f"all {self._capacity} places for adapters are in use: ask again, or "
                            "raise engine.max_adapters"
                        )
                    self._changed.wait(0.2)
                    continue
                victim = next((k for k in idle if k not in self._known.wanted), idle[0])
                evicted = self._leave(victim)
            evicted.result(ERRAND_TIMEOUT_S)

    def _idle_and_unwanted(self) -> list[str]:
        with self._changed:
            keys = [
                k for k in self._resident if k not in self._known.wanted and not self._leases[k]
            ]
        return keys

    def _evict(self, key: str) -> None:
        with self._changed:
            if self._leases[key] or key not in self._resident:
                return
            evicted = self._leave(key)
        evicted.result(ERRAND_TIMEOUT_S)

    def _leave(self, key: str) -> "Future[Any]":
        """With the lock held until it is submitted, so that the decoder sees versions leave and
        come in the order in which their places are counted."""
        del self._resident[key]
        return self._submit(self._eviction(key))

    def _eviction(self, key: str) -> Errand:
        def evict() -> None:
            # Not resident: its install failed, and there is nothing left to do.
            with contextlib.suppress(EngineError, KeyError):
                self._decoder.evict(key)

        return evict

    def _run(self, errand: Callable[[], ResultT]) -> ResultT:
        result: ResultT = self._submit(errand).result(ERRAND_TIMEOUT_S)
        return result

    # --- for the operator ---

    def try_out(self, name: str, version: AdapterVersion) -> list[str]:
        """What keeps a version that is not listed yet from being served here; empty: nothing.

        Raises:
            StateError, EngineStopped: it could not be tried.
        """
        try:
            weights = self._weights(version)
            self._run(lambda: self._decoder.try_out(key_of(name, version), weights))
        except (OSError, EngineStopped):
            raise
        except EngineError as error:
            problems = getattr(error, "problems", None)
            return list(problems) if problems else [str(error)]
        except Exception as error:  # PEFT, safetensors and torch each have kinds of their own
            return [f"{type(error).__name__}: {_one_line(error)}"]
        self._probed.add(version.digest)
        return []

    def report(self) -> dict[str, Any]:
        """What this replica holds: the catalogue's versions in service, and where each one is."""
        with self._changed:
            adapters = [self._reported(key) for key in self._known.wanted]
            leaving = [k for k in self._resident if k not in self._known.wanted]
            return {
                "revision": self._known.revision,
                "adapters": adapters,
                "leaving": leaving,
                "skipped": dict(self._known.skipped),
                "last_error": self._last_error,
            }

    def _reported(self, key: str) -> dict[str, Any]:
        known = self._known[key]
        return {
            "name": known.name,
            "version": known.version.version,
            "digest": known.version.digest,
            "tier": self._tier(key),
            "answers": known.num_answers,
            "load_s": None if known.load_s is None else round(known.load_s, 4),
            "error": known.error,
        }

    def _tier(self, key: str) -> str:
        if key in self._resident:
            return "device"
        return "host" if self._known[key].version.digest in self._host else "disk"

    def count_by_tier(self) -> dict[str, int]:
        with self._changed:
            tiers = Counter(self._tier(key) for key in self._known.wanted)
        return {tier: tiers[tier] for tier in ("device", "host", "disk")}

    def new_loads(self) -> list[tuple[str, float]]:
        """(adapter, seconds) of each load since the last call."""
        with self._changed:
            loads, self._new_loads = self._new_loads, []
        return loads


def _at_once(errand: Errand) -> Future[Any]:
    """Before the engine starts, the loader's own thread may change the decoder."""
    future: Future[Any] = Future()
    try:
        future.set_result(errand())
    except Exception as error:
        future.set_exception(error)
    return future


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
