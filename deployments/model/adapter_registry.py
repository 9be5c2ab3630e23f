"""The catalogue as one replica reads it: versions that are known, in service, and in force.

No locks: the holder that owns it guards it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.catalog import Catalog
from adapters.versions import AdapterVersion, RegisteredAdapter

FORGET_S = 120.0  # a version that left the catalogue can be asked for this long


@dataclass(slots=True)
class VersionState:
    """`gone_at`: when it left the catalogue; None: it is listed."""

    name: str
    version: AdapterVersion
    gone_at: float | None = None
    error: str | None = None
    load_s: float | None = None
    num_answers: int = 0


@dataclass(frozen=True, slots=True)
class Serving:
    """How a version is in service. `weight`: its share of the sessions, on trial; None: it is in
    force."""

    specialty: str
    weight: float | None
    pinned: bool


class AdapterRegistry:
    """`wanted`: the versions in service, by key in the catalogue's order; replaced as a whole.
    `revision` -1: none was read yet."""

    def __init__(self, base_model: str) -> None:
        self.wanted: Mapping[str, Serving] = {}
        self.revision = -1
        self.skipped: dict[str, str] = {}
        self._base_model = base_model
        self._known: dict[str, VersionState] = {}
        self._key_of: dict[tuple[str, str], str] = {}
        self._in_force: dict[str, str] = {}  # name -> key

    def __getitem__(self, key: str) -> VersionState:
        return self._known[key]

    def get(self, key: str) -> VersionState | None:
        return self._known.get(key)

    def is_pinned(self, key: str) -> bool:
        service = self.wanted.get(key)
        return service is not None and service.pinned

    def find(self, name: str, version: str | None) -> str | None:
        """The key of a version; None for `version`: the one in force."""
        if version is None:
            return self._in_force.get(name)
        return self._key_of.get((name, version))

    def follow(
        self, catalog: Catalog, now: float, is_used: Callable[[str], bool]
    ) -> tuple[set[str], list[VersionState]]:
        """Take over what is listed and in service.

        Args:
            now: seconds, on the clock of the call before.
            is_used: whether an answer still runs on a key.

        Returns:
            The keys that were not wanted before (none at the first call), and what was forgotten.
        """
        listed: dict[str, tuple[str, AdapterVersion]] = {}
        wanted: dict[str, Serving] = {}
        in_force: dict[str, str] = {}
        for adapter in catalog.of_base(self._base_model):
            for version in adapter.versions:
                listed[adapter_key(adapter.name, version)] = (adapter.name, version)
            wanted |= _services(adapter)
            if adapter.served:
                in_force[adapter.name] = adapter_key(adapter.name, adapter.stable)
        for key, (name, version) in listed.items():
            self._known.setdefault(key, VersionState(name, version)).gone_at = None
        forgotten = self._forget(listed, now, is_used)
        self._key_of = {(k.name, k.version.version): key for key, k in self._known.items()}
        # the listed one wins over one that is gone and had the same version's name
        self._key_of |= {(name, v.version): key for key, (name, v) in listed.items()}
        fresh = set(wanted) - set(self.wanted) if self.revision >= 0 else set()
        self.wanted, self._in_force = wanted, in_force
        self.revision = catalog.revision
        self.skipped = catalog.skipped(self._base_model)
        return fresh, forgotten

    def _forget(
        self,
        listed: dict[str, tuple[str, AdapterVersion]],
        now: float,
        is_used: Callable[[str], bool],
    ) -> list[VersionState]:
        forgotten = []
        for key, known in list(self._known.items()):
            if key in listed:
                continue
            known.gone_at = now if known.gone_at is None else known.gone_at
            if now - known.gone_at > FORGET_S and not is_used(key):
                forgotten.append(self._known.pop(key))
        return forgotten

    def described(self, key: str) -> dict[str, Any]:
        """A version in service, for the operator; where its weights are is the holder's to say."""
        known, service = self._known[key], self.wanted[key]
        return {
            "name": known.name,
            "specialty": service.specialty,
            "version": known.version.version,
            "digest": known.version.digest,
            "state": "active" if service.weight is None else "canary",
            "weight": service.weight,
            "pinned": service.pinned,
            "answers": known.num_answers,
            "load_s": None if known.load_s is None else round(known.load_s, 4),
            "error": known.error,
        }


def _services(adapter: RegisteredAdapter) -> dict[str, Serving]:
    """Key -> how this adapter's versions are in service; empty: it is disabled."""
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
    """The decoder's name of a version: no two contents share one."""
    return f"{name}@{version.version}#{version.digest[:12]}"
