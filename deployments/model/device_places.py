"""The places for adapters on one device: who has one, who is on the way, who must leave.

No locks: the holder that owns it guards it.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection

from deployments.model.adapter_registry import AdapterRegistry


class DevicePlaces:
    """Keys of versions. One that is being loaded has a place from `reserve` on.

    Args:
        capacity: versions on the device at the same time.
    """

    def __init__(self, capacity: int, known: AdapterRegistry) -> None:
        self.capacity = capacity
        self._known = known
        self._resident: OrderedDict[str, None] = OrderedDict()  # least recently leased first
        self._loading: set[str] = set()  # being read or installed, by whoever asked first
        self._installing: set[str] = set()  # of those, the ones that have a place
        self._leases: Counter[str] = Counter()

    def __contains__(self, key: str) -> bool:
        """Whether it is on the device."""
        return key in self._resident

    @property
    def resident(self) -> Collection[str]:
        return self._resident.keys()

    @property
    def has_room(self) -> bool:
        return len(self._resident) + len(self._installing) < self.capacity

    def num_leases(self, key: str) -> int:
        """Answers that run on it."""
        return self._leases[key]

    def is_used(self, key: str) -> bool:
        """Whether somebody still needs to know of it."""
        return key in self._resident or key in self._loading or self._leases[key] > 0

    def take(self, key: str) -> None:
        """Lease what is on the device."""
        self._leases[key] += 1
        self._resident.move_to_end(key)

    def give_back(self, key: str) -> bool:
        """Whether that was the last lease."""
        self._leases[key] -= 1
        assert self._leases[key] >= 0, f"{key} released more often than leased"
        is_last = not self._leases[key]
        if is_last:
            del self._leases[key]
        return is_last

    # --- coming ---

    def is_loading(self, key: str) -> bool:
        return key in self._loading

    def start_loading(self, key: str) -> None:
        self._loading.add(key)

    def reserve(self, key: str) -> None:
        """The one who loads it has a place for it."""
        self._installing.add(key)

    def arrive(self, key: str) -> None:
        self._resident[key] = None
        self._installing.discard(key)

    def stop_loading(self, key: str) -> None:
        self._loading.discard(key)
        self._installing.discard(key)

    # --- leaving ---

    def leave(self, key: str) -> None:
        del self._resident[key]

    def out_of_service(self) -> list[str]:
        """On the device, and no longer in the catalogue's service."""
        return [key for key in self._resident if key not in self._known.wanted]

    def victim(self) -> str | None:
        """Who makes room: out of service first, then the least recently leased; never one that
        is leased or pinned. None: nobody can now."""
        idle = [k for k in self._resident if not self._leases[k] and not self._known.is_pinned(k)]
        return next((k for k in idle if k not in self._known.wanted), idle[0] if idle else None)

    @property
    def are_all_pinned(self) -> bool:
        """Then waiting makes no room."""
        taken = (*self._resident, *self._installing)
        return sum(map(self._known.is_pinned, taken)) >= self.capacity
