"""Adapter versions of one replica: which exist, which are in service, and which are on the device.

No locks: those of AdapterCache guard it.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from adapters.catalog import Catalog
from adapters.versions import AdapterVersion, RegisteredAdapter
from deployments.engine.errors import EngineError
from deployments.messages import held_name

FORGET_S = 120.0  # how long a version that left the catalogue can still be asked for


class AdapterGone(EngineError):
    """The version is not in the catalogue (any more)."""

    code = "adapter_gone"
    retry_after_s = 1


class AdapterUnavailable(EngineError):
    """The version is in the catalogue, but this replica cannot load it now."""

    code = "adapter_unavailable"
    retry_after_s = 5


@dataclass(slots=True)
class VersionState:
    """A version and what happened to it on this replica.

    gone_at: when it left the catalogue, in seconds; None while it is listed.
    error: why its last load failed; None if it did not.
    load_s: seconds that its last load took.
    """

    name: str
    version: AdapterVersion
    gone_at: float | None = None
    error: str | None = None
    load_s: float | None = None
    num_answers: int = 0


@dataclass(frozen=True, slots=True)
class Serving:
    """How a version is in service.

    weight: the share of sessions that a canary gets; None for the adapter's stable version.
    """

    specialty: str
    weight: float | None
    pinned: bool


class AdapterRegistry:
    """Versions by key (see `adapter_key`).

    wanted: the versions in service, in the catalogue's order; replaced as a whole.
    revision: of the catalogue; -1 before the first one was read.
    skipped: adapter -> why it is not served on this base model.
    """

    def __init__(self, base_model: str) -> None:
        self.wanted: Mapping[str, Serving] = {}
        self.revision = -1
        self.skipped: dict[str, str] = {}
        self._base_model = base_model
        self._states: dict[str, VersionState] = {}
        self._key_of: dict[tuple[str, str], str] = {}
        self._stable: dict[str, str] = {}  # name -> key

    def __getitem__(self, key: str) -> VersionState:
        return self._states[key]

    def get(self, key: str) -> VersionState | None:
        return self._states.get(key)

    def is_pinned(self, key: str) -> bool:
        serving = self.wanted.get(key)
        return serving is not None and serving.pinned

    def state_of(self, key: str) -> str:
        """Return how a version is in service: active, canary, or leaving."""
        serving = self.wanted.get(key)
        if serving is None:
            return "leaving"
        return "active" if serving.weight is None else "canary"

    def find(self, name: str, version: str | None) -> str | None:
        """Return the key of a version, of the stable one if `version` is None. None if unknown."""
        if version is None:
            return self._stable.get(name)
        return self._key_of.get((name, version))

    def held_names(self, keys: Iterable[str]) -> Iterator[str]:
        """Yield how a router may ask for each of these versions (messages.held_name)."""
        for key in keys:
            state = self._states.get(key)
            if state is not None:
                yield held_name(state.name, state.version.version)
                if self._stable.get(state.name) == key:
                    yield held_name(state.name, None)

    def update(
        self, catalog: Catalog, now: float, is_used: Callable[[str], bool]
    ) -> tuple[set[str], list[VersionState]]:
        """Become what `catalog` says.

        Args:
            now: seconds, on the same clock as in the call before.
            is_used: whether a key is loaded, being loaded or leased, and so must stay known.

        Returns:
            The keys that were not wanted before (none at the first call), and the versions that
            were forgotten.
        """
        listed: dict[str, tuple[str, AdapterVersion]] = {}
        wanted: dict[str, Serving] = {}
        stable: dict[str, str] = {}
        for adapter in catalog.of_base(self._base_model):
            for version in adapter.versions:
                listed[adapter_key(adapter.name, version)] = (adapter.name, version)
            wanted |= _serving(adapter)
            if adapter.served:
                stable[adapter.name] = adapter_key(adapter.name, adapter.stable)
        for key, (name, version) in listed.items():
            self._states.setdefault(key, VersionState(name, version)).gone_at = None
        forgotten = self._forget(listed, now, is_used)
        self._key_of = {(s.name, s.version.version): key for key, s in self._states.items()}
        # A listed version wins over one that is gone and had the same name.
        self._key_of |= {(name, v.version): key for key, (name, v) in listed.items()}
        fresh = set(wanted) - set(self.wanted) if self.revision >= 0 else set()
        self.wanted, self._stable = wanted, stable
        self.revision = catalog.revision
        self.skipped = catalog.skipped(self._base_model)
        return fresh, forgotten

    def _forget(
        self,
        listed: Mapping[str, object],
        now: float,
        is_used: Callable[[str], bool],
    ) -> list[VersionState]:
        forgotten = []
        for key, state in list(self._states.items()):
            if key in listed:
                continue
            state.gone_at = now if state.gone_at is None else state.gone_at
            if now - state.gone_at > FORGET_S and not is_used(key):
                forgotten.append(self._states.pop(key))
        return forgotten


def _serving(adapter: RegisteredAdapter) -> dict[str, Serving]:
    """Return key -> how this adapter's versions are in service; empty if it is disabled."""
    canary = adapter.canary
    return {
        adapter_key(adapter.name, version): Serving(
            adapter.specialty,
            canary.weight if canary and canary.version == version.version else None,
            adapter.pinned,
        )
        for version in adapter.served
    }


def adapter_key(name: str, version: AdapterVersion) -> str:
    """Return the decoder's name of a version: two different contents never share one."""
    return f"{name}@{version.version}#{version.digest[:12]}"


class DeviceSlots:
    """The slots of one device: which versions hold one, which are leased, which is evicted.

    No locks: AdapterCache guards it. A version that is being installed has its slot from `reserve`.

    Args:
        capacity: versions on the device at the same time.
        evict: submits the eviction of a version to the decoder.
    """

    def __init__(
        self, capacity: int, registry: AdapterRegistry, evict: Callable[[str], "Future[Any]"]
    ) -> None:
        self.capacity = capacity
        self.num_evictions = 0
        self._registry = registry
        self._submit_eviction = evict
        self._resident: OrderedDict[str, None] = OrderedDict()  # least recently leased first
        self._reserved: set[str] = set()
        self._leases: Counter[str] = Counter()

    def __contains__(self, key: str) -> bool:
        """Whether it is on the device."""
        return key in self._resident

    def __iter__(self) -> Iterator[str]:
        """Iterate over what is on the device."""
        return iter(self._resident)

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
        """Lease a resident version for an answer; it becomes the most recently used one."""
        self._leases[key] += 1
        self._registry[key].num_answers += 1
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

    def evict(self, key: str) -> "Future[Any]":
        """Free the slot and submit the eviction under one lock: the decoder sees versions leave
        and arrive in the order in which their slots are counted."""
        del self._resident[key]
        self.num_evictions += 1
        return self._submit_eviction(key)

    def evict_if_unwanted(self, key: str) -> None:
        """Evict a version that is out of service, unless it is leased."""
        if key in self and not self.num_leases(key) and key not in self._registry.wanted:
            self.evict(key)

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
