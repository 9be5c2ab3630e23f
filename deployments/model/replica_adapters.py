"""The adapters of a model replica, as its event loop sees them; no loading on the loop.

A cold adapter is loaded on threads of its own, so it delays only its own questions: tokenising and
everything else goes on.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ray.serve import metrics

from adapters.versions import AdapterVersion
from deployments.messages import GenerateRequest
from deployments.model.adapter_cache import AdapterGone
from deployments.model.adapter_manager import AdapterManager

logger = logging.getLogger(__name__)

PAUSED_CHECK_S = 1.0
_LOAD_THREADS = 4
_LOAD_BOUNDARIES_S = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]


class ReplicaAdapters:
    """
    Args:
        holder: None: a model without adapters.
        run_between_steps: runs something on the engine's thread.
        check_s: seconds between two looks at the catalogue, for a replica that no broadcast
            reached; 0 pauses.
    """

    def __init__(
        self,
        holder: AdapterManager | None,
        run_between_steps: Callable[[Callable[[], Any]], "Future[Any]"],
        check_s: Callable[[], float],
    ) -> None:
        self._holder = holder
        self._check_s = check_s
        self._loaders = ThreadPoolExecutor(_LOAD_THREADS, thread_name_prefix="load-adapter")
        self._stopped = threading.Event()
        self._stamp: str | None = None
        self._resident = metrics.Gauge(
            "polyclinic_adapter_resident", "adapters in service, by tier", ("tier",)
        )
        self._load = metrics.Histogram(
            "polyclinic_adapter_load_s", "loading one adapter", _LOAD_BOUNDARIES_S, ("adapter",)
        )
        if holder is None:
            return
        holder.attach(run_between_steps)
        self._stamp = holder.stamp()
        for name, why in holder.report()["skipped"].items():
            logger.info("adapter %s is not served: %s", name, why)
        self._measure()
        threading.Thread(target=self._follow, name="adapter-sync", daemon=True).start()

    @contextlib.asynccontextmanager
    async def leased(self, call: GenerateRequest) -> AsyncIterator[str | None]:
        """The decoder's name of the version that answers `call`, on the device meanwhile.

        Raises:
            AdapterGone, AdapterUnavailable
        """
        if call.adapter is None:
            yield None
            return
        if self._holder is None:
            raise AdapterGone(f"adapter '{call.adapter}' is not held: this model has no adapters")
        holder = self._holder
        key = holder.try_lease(call.adapter, call.adapter_version)
        if key is None:
            key = await self._cold(holder, call.adapter, call.adapter_version)
        try:
            yield key
        finally:
            holder.release(key)

    async def _cold(self, holder: AdapterManager, name: str, version: str | None) -> str:
        """Load it on a thread. A client that leaves meanwhile leaves no lease behind."""
        loading = self._loaders.submit(holder.lease, name, version)
        try:
            return await asyncio.shield(asyncio.wrap_future(loading))
        except asyncio.CancelledError:
            loading.add_done_callback(lambda done: _give_back(holder, done))
            raise

    async def sync(self) -> dict[str, Any]:
        return await asyncio.to_thread(self._sync)

    async def dry_run(self, name: str, version: AdapterVersion) -> list[str]:
        if self._holder is None:
            return ["this model takes no adapters"]
        return await asyncio.to_thread(self._holder.dry_run, name, version)

    def info(self) -> dict[str, Any]:
        """For /readyz: the versions in service, and what this replica could not load."""
        if self._holder is None:
            return {"adapters": [], "adapters_skipped": {}}
        report = self._holder.report()
        return {
            "adapters": report["adapters"],
            "adapters_skipped": report["skipped"],
            "adapters_leaving": report["leaving"],
            "adapters_revision": report["revision"],
            "adapters_error": report["last_error"],
        }

    def stop(self) -> None:
        self._stopped.set()
        self._loaders.shutdown(wait=False, cancel_futures=True)

    def _sync(self) -> dict[str, Any]:
        if self._holder is None:
            return {"revision": None, "adapters": [], "leaving": [], "error": None}
        try:
            stamp = self._holder.stamp()
            report = self._holder.sync()
            self._stamp = stamp
            self._measure()
            return {**report, "error": None}
        except (OSError, ValueError) as error:
            logger.error("the adapters stay as they are: %s", error)
            return {**self._holder.report(), "error": str(error)}

    def _follow(self) -> None:
        assert self._holder is not None
        self._holder.prefetch()
        while not self._stopped.wait(self._check_s() or PAUSED_CHECK_S):
            self._measure()
            if not self._check_s():
                continue
            try:
                is_behind = self._holder.is_behind(self._stamp)
            except OSError as error:
                logger.error("the adapters stay as they are: %s", error)
                continue
            if is_behind:
                self._sync()
            self._holder.prefetch()

    def _measure(self) -> None:
        assert self._holder is not None
        for tier, count in self._holder.count_by_tier().items():
            self._resident.set(count, {"tier": tier})
        for name, seconds in self._holder.new_loads():
            self._load.observe(seconds, {"adapter": name})


def _give_back(holder: AdapterManager, done: "Future[str]") -> None:
    if not done.cancelled() and done.exception() is None:
        holder.release(done.result())
