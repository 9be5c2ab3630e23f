"""The operator's side of the API on a catalogue of a few bytes: one replica that takes anything."""

from pathlib import Path
from typing import Any

from adapters.store import AdapterStore, open_store
from adapters.versions import AdapterVersion
from deployments.adapter_admin import AdapterAdmin, BroadcastReply
from deployments.ingress.followed import follow_catalog
from tests.adapters.live_catalogs import make_seed

BASE = "tiny"


class OneReplica:
    """Implements `adapter_admin.Replicas`: holds whatever the catalogue has in service."""

    def __init__(self, store: AdapterStore) -> None:
        self._store = store

    async def try_adapter(self, name: str, version: AdapterVersion) -> list[str]:
        return []

    async def broadcast(self, timeout_s: float) -> BroadcastReply:
        return await self.reports(timeout_s)

    async def reports(self, timeout_s: float) -> BroadcastReply:
        catalog = self._store.read()
        held: list[dict[str, Any]] = [
            {
                "name": adapter.name,
                "version": version.version,
                "digest": version.digest,
                "pinned": adapter.pinned,
                "tier": "device",
                "answers": 0,
                "load_s": 0.01,
                "error": None,
            }
            for adapter in catalog.in_service(BASE)
            for version in adapter.served
        ]
        report = {"replica": "one", "revision": catalog.revision, "adapters": held, "error": None}
        return BroadcastReply([report], {})


def quiet_admin(folder: Path) -> AdapterAdmin:
    store = open_store(str(folder / "state"), make_seed(folder / "seed"), folder / "cache")
    refresh = follow_catalog(store, BASE, lambda: 0.0).refresh
    return AdapterAdmin(store, refresh, OneReplica(store), BASE, max_rank=64, num_slots=2)
