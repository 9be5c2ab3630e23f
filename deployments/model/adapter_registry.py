"""The catalogue as one replica reads it: which adapter versions exist, and which are in service.

No locks: AdapterManager guards it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapters.catalog import Catalog
from adapters.versions import AdapterVersion, RegisteredAdapter

FORGET_S = 120.0  # how long a version that left the catalogue can still be asked for


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

    def find(self, name: str, version: str | None) -> str | None:
        """Return the key of a version, of the stable one if `version` is None. None if unknown."""
        if version is None:
            return self._stable.get(name)
        return self._key_of.get((name, version))

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
