"""What a replica holds of the catalogue, for the operator and the metrics."""

from collections import Counter
from typing import Any

from deployments.model.adapter_registry import AdapterRegistry, DeviceSlots
from deployments.model.weights_reader import WeightsReader


class Inventory:
    """Reads only. Call it with the lock of the registry and the slots held."""

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

    def _described(self, key: str) -> dict[str, Any]:
        state, serving = self._registry[key], self._registry.wanted[key]
        return {
            "name": state.name,
            "specialty": serving.specialty,
            "version": state.version.version,
            "digest": state.version.digest,
            "state": "active" if serving.weight is None else "canary",
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
