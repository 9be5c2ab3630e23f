"""The adapters of one model replica: which versions it knows, and where each one's weights are.

Tiers, fastest first: the decoder's bank (device), weights read and kept in memory (host), files
that the store hands out (disk; with an object store, fetched first). `sync` follows the catalogue;
`lease` makes sure that a version is on the device and keeps it there until `release`.

An answer leases the version that it begins with, so an update, a roll-back or a removal lets it
finish, and the old version leaves the device with its last answer. A version that left the
catalogue a moment ago can still be leased: a question may be on its way from the router. A pinned
version in service is loaded by `sync`, and leaves the device for no other.
"""

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from adapters.catalog import Catalog
from adapters.store import AdapterStore
from adapters.versions import AdapterVersion
from deployments.engine.request import EngineError
from deployments.model.adapter_cache import AdapterCache, AdapterGone
from deployments.model.adapter_loader import AdapterDecoder, AdapterLoader, Errand
from deployments.model.adapter_registry import AdapterRegistry
from deployments.model.device_places import DevicePlaces
from deployments.model.host_memory import HostCache

logger = logging.getLogger(__name__)


class AdapterManager:
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
        host: HostCache,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._loader = AdapterLoader(store, decoder, host)
        self._known = AdapterRegistry(base_model)
        self._places = DevicePlaces(capacity, self._known)
        self._device = AdapterCache(self._known, self._places, self._loader, clock)
        self._changed = self._device.changed  # guards the known versions and the places
        self._syncing = threading.Lock()

    def attach(self, run_between_steps: Callable[[Errand], Future[Any]]) -> None:
        """From now on the decoder is changed through the running engine."""
        self._loader.attach(run_between_steps)

    # --- following the catalogue ---

    def sync(self) -> dict[str, Any]:
        """Read the catalogue and become what it says; returns `report()`. One at a time.

        What cannot be loaded is in the report, and is tried again by the next call.

        Raises:
            StorageError, CatalogError: the catalogue cannot be read; all stays as it was.
        """
        with self._syncing:
            try:
                catalog = self._store.read()
            except (OSError, ValueError) as error:
                self._device.last_error = str(error)
                raise
            fresh = self._follow(catalog)
            with self._changed:
                unwanted = self._places.out_of_service()
            for key in unwanted:
                self._device.evict_if_idle(key)
            # Pinned ones first: the others take the places that are left.
            for key in sorted(self._known.wanted, key=lambda key: not self._known.is_pinned(key)):
                if self._is_due(key, fresh):
                    self._load_in_sync(key)
            if not self._has_failed():
                self._device.last_error = None
            return self.report()

    def is_behind(self, stamp_seen: str | None) -> bool:
        """Whether `sync` has something to do: the catalogue changed, or something failed."""
        failed = self._has_failed() or self._device.last_error is not None
        return failed or self._store.etag() != stamp_seen

    def _has_failed(self) -> bool:
        with self._changed:
            return any(self._known[key].error for key in self._known.wanted)

    def stamp(self) -> str | None:
        return self._store.etag()

    def _follow(self, catalog: Catalog) -> set[str]:
        """Take the catalogue over; returns the keys that were not wanted before."""
        with self._changed:
            fresh, forgotten = self._known.follow(catalog, self._clock(), self._places.is_used)
        for known in forgotten:
            self._loader.forget(known.version)
        return fresh

    def _is_due(self, key: str, fresh: set[str]) -> bool:
        """Whether `sync` loads it. The others wait until somebody asks for them."""
        with self._changed:
            has_reason = key in fresh or self._known[key].error is not None
            is_due = has_reason or self._known.is_pinned(key) or self._places.has_room
            return is_due and key not in self._places

    def _load_in_sync(self, key: str) -> None:
        try:
            self._device.acquire(key)
        except EngineError as error:
            logger.error("adapter %s: %s", key, error)
        else:
            self._device.release(key)

    def prefetch(self) -> None:
        """Read what is in service into main memory, as far as there is room, so that a version's
        first question does not wait for its files. What cannot be read is found when it is asked
        for."""
        for key in self._known.wanted:
            known = self._known.get(key)
            if known is not None and key not in self._places:
                self._loader.prefetch(known.version)

    # --- answers ---

    def try_lease(self, name: str, version: str | None) -> str | None:
        """The key of a version that is on the device, leased; None: `lease` may have to load it."""
        with self._changed:
            key = self._known.find(name, version)
        if key is None or not self._device.try_acquire(key):
            return None
        self._count_answer(key)
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
        self._device.acquire(key)
        self._count_answer(key)
        return key

    def _count_answer(self, key: str) -> None:
        with self._changed:
            self._known[key].num_answers += 1

    def release(self, key: str) -> None:
        """The answer has ended. A version that is out of service leaves with its last answer."""
        self._device.release(key)

    # --- for the operator ---

    def dry_run(self, name: str, version: AdapterVersion) -> list[str]:
        """What keeps a version that is not listed yet from being served here; empty: nothing.

        Raises:
            StorageError, EngineStopped: it could not be tried.
        """
        return self._loader.dry_run(name, version)

    def report(self) -> dict[str, Any]:
        """What this replica holds: the catalogue's versions in service, and where each one is.
        `leaving`: versions out of service that still answer, with how many answers. `last_error`:
        what failed, until a `sync` finds all well."""
        with self._changed:
            known, places = self._known, self._places
            return {
                "revision": known.revision,
                "adapters": [
                    {**known.described(key), "tier": self._tier(key)} for key in known.wanted
                ],
                "leaving": [
                    {
                        "name": known[key].name,
                        "version": known[key].version.version,
                        "running": places.num_leases(key),
                    }
                    for key in places.out_of_service()
                ],
                "skipped": dict(known.skipped),
                "last_error": self._device.last_error,
            }

    def _tier(self, key: str) -> str:
        if key in self._places:
            return "device"
        return "host" if self._loader.has_in_memory(self._known[key].version) else "disk"

    def count_by_tier(self) -> dict[str, int]:
        with self._changed:
            tiers = Counter(self._tier(key) for key in self._known.wanted)
        return {tier: tiers[tier] for tier in ("device", "host", "disk")}

    def new_loads(self) -> list[tuple[str, float]]:
        """(adapter, seconds) of each load since the last call."""
        return self._device.new_loads()
