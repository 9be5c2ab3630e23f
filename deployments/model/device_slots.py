"""The adapter slots of one device: which versions hold one, which are leased, which is evicted.

No locks: AdapterCache guards it.
"""

from collections import Counter, OrderedDict

from deployments.model.adapter_registry import AdapterRegistry


class DeviceSlots:
    """Slots by version key. A version that is being installed has its slot from `reserve` on.

    Args:
        capacity: versions on the device at the same time.
    """

    def __init__(self, capacity: int, registry: AdapterRegistry) -> None:
        self.capacity = capacity
        self._registry = registry
        self._resident: OrderedDict[str, None] = OrderedDict()  # least recently leased first
        self._reserved: set[str] = set()
        self._leases: Counter[str] = Counter()

    def __contains__(self, key: str) -> bool:
        """Whether it is on the device."""
        return key in self._resident

    @property
    def has_room(self) -> bool:
        return len(self._resident) + len(self._reserved) < self.capacity

    @property
    def are_all_pinned(self) -> bool:
        """Whether no slot can ever become free, so that waiting for one is useless."""
        held = (*self._resident, *self._reserved)
        return sum(map(self._registry.is_pinned, held)) >= self.capacity

    def num_leases(self, key: str) -> int:
        return self._leases[key]

    def lease(self, key: str) -> None:
        """Lease a resident version, which makes it the most recently used one."""
        self._leases[key] += 1
        self._resident.move_to_end(key)

    def release(self, key: str) -> None:
        self._leases[key] -= 1
        assert self._leases[key] >= 0, f"{key} released more often than leased"
        if not self._leases[key]:
            del self._leases[key]

    def reserve(self, key: str) -> None:
        """Give a slot to a version that is about to be installed."""
        self._reserved.add(key)

    def cancel(self, key: str) -> bool:
        """Free the slot of a load that failed; returns whether it had one."""
        had_slot = key in self._reserved
        self._reserved.discard(key)
        return had_slot

    def arrive(self, key: str) -> None:
        """Make an installed version resident."""
        self._resident[key] = None
        self._reserved.discard(key)

    def evict(self, key: str) -> None:
        del self._resident[key]

    def out_of_service(self) -> list[str]:
        """Return the resident versions that the catalogue no longer has in service."""
        return [key for key in self._resident if key not in self._registry.wanted]

    def select_victim(self) -> str | None:
        """Return the version to evict: out of service first, then the least recently leased.

        Returns None if every resident version is leased or pinned.
        """
        registry = self._registry
        idle = [k for k in self._resident if not self._leases[k] and not registry.is_pinned(k)]
        return next((k for k in idle if k not in registry.wanted), idle[0] if idle else None)
