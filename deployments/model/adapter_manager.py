"""The adapters of one model replica: it follows the catalogue and reports.

The weights of a version are in one of three tiers, fastest first: a slot of the device, main memory
(host), files that the store hands out (disk; an object store's are fetched first).

Answers lease versions (adapter_cache.py). A pinned version in service is loaded by `sync` and
never evicted.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapters.prompting import PromptFormat
from adapters.store import AdapterStore
from adapters.versions import AdapterVersion
from deployments.engine.errors import EngineError
from deployments.model.adapter_cache import AdapterCache, AdapterLeases
from deployments.model.adapter_registry import AdapterRegistry, DeviceSlots, adapter_key
from deployments.model.decoder_tasks import DecoderTasks, RunBetweenSteps
from deployments.model.weights_reader import AdapterDecoder, HostCache, WeightsReader

logger = logging.getLogger(__name__)


class Inventory:
    """What a replica holds of the catalogue, for the operator and the metrics.

    Reads only. Call it with the lock of the registry and the slots held.
    """

    def __init__(
        self, registry: AdapterRegistry, slots: DeviceSlots, reader: WeightsReader
    ) -> None:
        self._registry = registry
        self._slots = slots
        self._reader = reader

    def in_service(self) -> list[dict[str, Any]]:
        """Return the versions in service, each with its tier and how it serves."""
        return [self._described(key) for key in self._registry.wanted]

    def leaving(self) -> list[dict[str, Any]]:
        """Return the versions out of service that still answer."""
        out = self._slots.out_of_service()
        return [{**self._named(key), "running": self._slots.num_leases(key)} for key in out]

    def count_by_tier(self) -> dict[str, int]:
        """Return the number of versions in service for each tier."""
        tiers = Counter(map(self._tier, self._registry.wanted))
        return {tier: tiers[tier] for tier in ("device", "host", "disk")}

    def answers(self) -> list[tuple[str, str, str, int]]:
        """Return (adapter, version, how it is in service, answers so far), of those in service and
        those that leave."""
        found = []
        for key in (*self._registry.wanted, *self._slots.out_of_service()):
            known = self._registry[key]
            state = self._registry.state_of(key)
            found.append((known.name, known.version.version, state, known.num_answers))
        return found

    def _described(self, key: str) -> dict[str, Any]:
        state, serving = self._registry[key], self._registry.wanted[key]
        return {
            "name": state.name,
            "specialty": serving.specialty,
            "version": state.version.version,
            "digest": state.version.digest,
            "state": self._registry.state_of(key),
            "weight": serving.weight,
            "pinned": serving.pinned,
            "answers": state.num_answers,
            "load_s": None if state.load_s is None else round(state.load_s, 4),
            "error": state.error,
            "tier": self._tier(key),
        }

    def _named(self, key: str) -> dict[str, Any]:
        state = self._registry[key]
        return {"name": state.name, "version": state.version.version}

    def _tier(self, key: str) -> str:
        if key in self._slots:
            return "device"
        return "host" if self._reader.is_in_memory(self._registry[key].version) else "disk"


class AdapterManager:
    """Any thread may call it.

    Args:
        capacity: versions on the device at the same time.
        host: keeps weights in main memory.
        run: runs a task on the engine's thread, between two steps.
        verified: folders by digest whose checksums were compared a moment ago.
        clock: seconds, monotonic.

    Attributes:
        leases: of the versions that answer.
    """

    def __init__(
        self,
        store: AdapterStore,
        base_model: str,
        decoder: AdapterDecoder,
        *,
        capacity: int,
        host: HostCache,
        run: RunBetweenSteps,
        verified: Mapping[str, Path] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._clock = clock
        self._registry = AdapterRegistry(base_model)
        self._reader = WeightsReader(store, decoder, host, verified or {})
        self._tasks = DecoderTasks(decoder, run)
        self._cache = AdapterCache(
            self._registry, self._reader, self._tasks, capacity=capacity, clock=clock
        )
        self.leases = AdapterLeases(self._cache, self._read_catalog)
        self._inventory = Inventory(self._registry, self._cache.slots, self._reader)
        self._changed = self._cache.changed  # guards the registry and the slots
        self._reading = threading.Lock()  # one catalogue is taken over at a time
        self._syncing = threading.Lock()
        self._fresh: set[str] = set()  # new in service, for the next `sync`; guarded by _changed
        self._synced_etag: str | None = None
        self._catalog_error: str | None = None

    # --- following the catalogue ---

    def sync(self) -> dict[str, Any]:
        """Read the catalogue and become what it says; returns `report()`.

        What cannot be loaded is in the report, and the next call tries it again. When the catalogue
        cannot be read (StorageError, CatalogError), all stays as it was.
        """
        with self._syncing:
            etag = self._read_catalog()
            with self._changed:
                fresh, self._fresh = self._fresh, set()
                unwanted = self._cache.slots.out_of_service()
            for key in unwanted:
                self._cache.evict_if_idle(key)
            # Pinned versions first: the others take the slots that are left.
            wanted = self._registry.wanted
            for key in sorted(wanted, key=lambda key: not wanted[key].pinned):
                if self._is_due(key, fresh):
                    self._load_in_sync(key)
            if not self._has_failed():
                self._cache.loads.last_error = None
            self._synced_etag = etag
            return self.report()

    def try_sync(self) -> dict[str, Any]:
        """As `sync`; a catalogue that cannot be read is logged and is the report's `error`."""
        try:
            return self.sync()
        except (OSError, ValueError) as error:
            logger.error("the adapters stay as they are: %s", error)
            return self.report()

    def is_behind(self) -> bool:
        """Whether the catalogue changed or something failed; raises StorageError."""
        failed = self._catalog_error or self._cache.loads.last_error or self._has_failed()
        return bool(failed) or self._store.etag() != self._synced_etag

    def prefetch(self) -> None:
        """Read what is in service into main memory, as far as there is room."""
        for key in self._registry.wanted:
            state = self._registry.get(key)
            if state is not None and key not in self._cache.slots:
                self._reader.prefetch(state.version)

    def _read_catalog(self) -> str | None:
        """Take the catalogue over into the registry, without loading anything; returns its etag."""
        with self._reading:
            try:
                etag = self._store.etag()
                catalog = self._store.read()
                self._catalog_error = None
            except (OSError, ValueError) as error:
                self._catalog_error = str(error)
                if self._registry.revision >= 0:
                    raise
                # A first look: this node's copy, if there is one, until the state can be read.
                etag, catalog = None, self._store.read_or_last_good()
            with self._changed:
                fresh, forgotten = self._registry.update(
                    catalog, self._clock(), self._cache.is_used
                )
                self._fresh |= fresh
            for state in forgotten:
                self._reader.forget(state.version)
                self._tasks.forget(state.version)
            return etag

    def _is_due(self, key: str, fresh: set[str]) -> bool:
        """Whether `sync` loads it. Other versions wait until somebody asks for them."""
        with self._changed:
            slots, state = self._cache.slots, self._registry.get(key)
            if state is None or key in slots:
                return False
            is_asked_for = key in fresh or state.error is not None or self._registry.is_pinned(key)
            return is_asked_for or slots.has_room

    def _load_in_sync(self, key: str) -> None:
        try:
            self._cache.load(key)
        except EngineError as error:
            logger.error("adapter %s: %s", key, error)

    def _has_failed(self) -> bool:
        with self._changed:
            states = map(self._registry.get, self._registry.wanted)
            return any(state is not None and state.error for state in states)

    def prompt_format(self, key: str) -> PromptFormat | None:
        """Return how a leased version is prompted; None: as the base model."""
        with self._changed:
            return self._registry[key].version.prompt_format

    # --- for the operator ---

    def dry_run(self, name: str, version: AdapterVersion) -> list[str]:
        """As DecoderTasks.dry_run, of a version that is not listed yet."""
        return self._tasks.dry_run(adapter_key(name, version), version, self._reader)

    def report(self) -> dict[str, Any]:
        """Return what this replica holds, without any effect on it.

        `error` says why the catalogue could not be read, `last_error` what failed, until a `sync`
        finds all well.
        """
        with self._changed:
            return {
                "revision": self._registry.revision,
                "adapters": self._inventory.in_service(),
                "leaving": self._inventory.leaving(),
                "skipped": dict(self._registry.skipped),
                "last_error": self._catalog_error or self._cache.loads.last_error,
                "error": self._catalog_error,
            }

    def state(self, key: str) -> str:
        """Return how a leased version is in service, as /v1/operator names it."""
        return self._registry.state_of(key)

    def answers_by_version(self) -> list[tuple[str, str, str, int]]:
        """As Inventory.answers."""
        with self._changed:
            return self._inventory.answers()

    @property
    def num_evictions(self) -> int:
        """Return how many versions have left the device since the start."""
        return self._cache.slots.num_evictions

    def residency(self) -> dict[str, Any]:
        """Return what is on the device or on its way there, by messages.held_name, and how many
        answers found their version there or waited for it."""
        cache = self._cache
        with self._changed:
            return {
                "adapters_held": list(self._registry.held_names((*cache.slots, *cache.loads))),
                "adapter_hits": cache.num_hits,
                "adapter_waits": cache.num_waits,
            }

    def measure(self) -> tuple[dict[str, int], list[tuple[str, float]]]:
        """Return versions in service by tier, and (adapter, seconds) of each load since then."""
        with self._changed:
            return self._inventory.count_by_tier(), self._cache.loads.take_finished()
