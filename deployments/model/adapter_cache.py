"""Adapter versions on a replica's device: loaded when leased, evicted when others need room.

Each answer keeps the version that it begins with on the device. So an update, a roll-back or a
removal lets an answer finish, and the old version leaves the device with its last answer. A version
that left the catalogue a moment ago can still be leased, since a question may be on its way from
the router.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor

from deployments.model.adapter_loads import AdapterLoads, Unleased
from deployments.model.adapter_registry import AdapterGone, AdapterRegistry, DeviceSlots
from deployments.model.decoder_tasks import TASK_TIMEOUT_S, DecoderTasks
from deployments.model.weights_reader import WeightsReader

READ_TIMEOUT_S = 5.0  # that a question waits for the catalogue


class AdapterCache:
    """Any thread may call it.

    Args:
        clock: seconds, monotonic.

    Attributes:
        changed: guards `registry`, `slots` and `loads`; notified when a slot may be free.
        num_hits, num_waits: leases of versions that were on the device, and of others.
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
        self.slots = DeviceSlots(capacity, registry, tasks.evict)
        self.loads = AdapterLoads(registry, self.slots, reader, tasks, self.changed, clock)
        self.num_hits = self.num_waits = 0

    def is_used(self, key: str) -> bool:
        """Whether it is on the device, on its way there, or leased. Call it with the lock held."""
        return key in self.slots or key in self.loads or self.slots.num_leases(key) > 0

    def acquire(self, key: str) -> "Future[str]":
        """Lease `key` for one answer; the future is done once it is on the device.

        The caller that gets the result must call `release`. A future that was cancelled before
        leases nothing. It fails with AdapterGone or AdapterUnavailable.
        """
        with self.changed:
            if key not in self.slots:
                self.num_waits += 1
                return self.loads.join(key, Future())
            self.num_hits += 1
            self.slots.lease(key)
        lease: Future[str] = Future()
        lease.set_result(key)
        return lease

    def load(self, key: str) -> None:
        """Load `key` without leasing it, and wait for it; raises what a lease fails with."""
        with self.changed:
            if key in self.slots:
                return
            loaded = self.loads.join(key, Unleased())
        loaded.result()

    def release(self, key: str) -> None:
        """End one lease. A version that is out of service leaves the device with its last one."""
        with self.changed:
            self.slots.release(key)
            self.slots.evict_if_unwanted(key)
            self.changed.notify_all()

    def evict_if_idle(self, key: str) -> None:
        """Evict `key` unless it is leased; returns when the decoder has done it."""
        with self.changed:
            if self.slots.num_leases(key) or key not in self.slots:
                return
            evicted = self.slots.evict(key)
        evicted.result(TASK_TIMEOUT_S)


class AdapterLeases:
    """Leases by an adapter's name. Any thread may call it.

    Args:
        read_catalog: takes the current catalogue over into the registry.
    """

    def __init__(self, cache: AdapterCache, read_catalog: Callable[[], object]) -> None:
        self._cache = cache
        self._read_catalog = read_catalog
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="catalog-read")

    @contextlib.asynccontextmanager
    async def leased(self, name: str, version: str | None) -> AsyncIterator[str]:
        """Keep a version (None: the stable one) on the device for one answer; yields its key.

        Raises:
            AdapterGone, AdapterUnavailable
        """
        if self._find(name, version) is None:  # the router may have read a newer catalogue
            # Not on the threads that tokenise: a file server may hang.
            reading = asyncio.get_running_loop().run_in_executor(self._threads, self._read_catalog)
            with contextlib.suppress(OSError, ValueError):
                await asyncio.wait_for(reading, READ_TIMEOUT_S)
        lease = self.lease(name, version)
        try:
            key = lease.result() if lease.done() else await asyncio.wrap_future(lease)
        except asyncio.CancelledError:
            lease.add_done_callback(self._give_back)
            raise
        try:
            yield key
        finally:
            self.release(key)

    def lease(self, name: str, version: str | None) -> "Future[str]":
        """Lease a version of the catalogue that was read last; as AdapterCache.acquire."""
        key = self._find(name, version)
        if key is not None:
            return self._cache.acquire(key)
        shown = name if version is None else f"{name}, version {version}"
        gone: Future[str] = Future()
        gone.set_exception(AdapterGone(f"adapter {shown} is not in service: ask again"))
        return gone

    def release(self, key: str) -> None:
        """End the lease of one answer."""
        self._cache.release(key)

    def _find(self, name: str, version: str | None) -> str | None:
        with self._cache.changed:
            return self._cache.registry.find(name, version)

    def _give_back(self, lease: "Future[str]") -> None:
        if not lease.cancelled() and lease.exception() is None:
            self.release(lease.result())
