"""Leases of adapter versions: each answer keeps the version that it begins with on the device.

So an update, a roll-back or a removal lets an answer finish, and the old version leaves the device
with its last answer. A version that left the catalogue a moment ago can still be leased, since a
question may be on its way from the router.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future

from deployments.model.adapter_cache import AdapterCache, AdapterGone
from deployments.model.adapter_registry import AdapterRegistry


class AdapterLeases:
    """Any thread may call it.

    Args:
        read_catalog: takes the current catalogue over into the registry.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        cache: AdapterCache,
        read_catalog: Callable[[], object],
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._read_catalog = read_catalog

    @contextlib.asynccontextmanager
    async def leased(self, name: str, version: str | None) -> AsyncIterator[str]:
        """Keep a version (None: the stable one) on the device for one answer; yields its key.

        Raises:
            AdapterGone, AdapterUnavailable
        """
        if self._find(name, version) is None:  # the router may have read a newer catalogue
            with contextlib.suppress(OSError, ValueError):
                await asyncio.to_thread(self._read_catalog)
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
            return self._registry.find(name, version)

    def _give_back(self, lease: "Future[str]") -> None:
        if not lease.cancelled() and lease.exception() is None:
            self.release(lease.result())
