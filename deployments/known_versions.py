"""The catalogue as one replica reads it: versions that are known, in service, and in force.

No locks: the holder that owns it guards it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from adapters.live_catalog import AdapterVersion, LiveCatalog

FORGET_S = 120.0  # a version that left the catalogue can be asked for this long


@dataclass(slots=True)
class Known:
    """`gone_at`: when it left the catalogue; None: it is listed."""

    name: str
    version: AdapterVersion
    gone_at: float | None = None
    error: str | None = None
    load_s: float | None = None
    num_answers: int = 0


class KnownVersions:
    """`wanted`: keys of the versions in service, in the catalogue's order. `revision` -1: none was
    read yet."""

    def __init__(self, base_model: str) -> None:
        self.wanted: tuple[str, ...] = ()
        self.revision = -1
        self.skipped: dict[str, str] = {}
        self._base_model = base_model
        self._known: dict[str, Known] = {}
        self._key_of: dict[tuple[str, str], str] = {}
        self._in_force: dict[str, str] = {}  # name -> key

    def __getitem__(self, key: str) -> Known:
        return self._known[key]

    def get(self, key: str) -> Known | None:
        return self._known.get(key)

    def find(self, name: str, version: str | None) -> str | None:
        """The key of a version; None for `version`: the one in force."""
        if version is None:
            return self._in_force.get(name)
        return self._key_of.get((name, version))

    def follow(
        self, catalog: LiveCatalog, now: float, is_used: Callable[[str], bool]
    ) -> tuple[set[str], list[Known]]:
        """Take over what is listed and in service.

        Args:
            now: seconds, on the clock of the call before.
            is_used: whether an answer still runs on a key.

        Returns:
            The keys that were not wanted before (none at the first call), and what was forgotten.
        """
        listed: dict[str, tuple[str, AdapterVersion]] = {}
        wanted, in_force = [], {}
        for adapter in catalog.adapters:
            if adapter.base_model != self._base_model:
                continue
            for version in adapter.versions:
                listed[key_of(adapter.name, version)] = (adapter.name, version)
            wanted += [key_of(adapter.name, version) for version in adapter.served]
            if adapter.served:
                in_force[adapter.name] = key_of(adapter.name, adapter.stable)
        for key, (name, version) in listed.items():
            self._known.setdefault(key, Known(name, version)).gone_at = None
        forgotten = self._forget(listed, now, is_used)
        self._key_of = {(k.name, k.version.version): key for key, k in self._known.items()}
        # the listed one wins over one that is gone and had the same version's name
        self._key_of |= {(name, v.version): key for key, (name, v) in listed.items()}
        fresh = set(wanted) - set(self.wanted) if self.revision >= 0 else set()
        self.wanted, self._in_force = tuple(wanted), in_force
        self.revision = catalog.revision
        self.skipped = catalog.skipped(self._base_model)
        return fresh, forgotten

    def _forget(
        self,
        listed: dict[str, tuple[str, AdapterVersion]],
        now: float,
        is_used: Callable[[str], bool],
    ) -> list[Known]:
        forgotten = []
        for key, known in list(self._known.items()):
            if key in listed:
                continue
            known.gone_at = now if known.gone_at is None else known.gone_at
            if now - known.gone_at > FORGET_S and not is_used(key):
                forgotten.append(self._known.pop(key))
        return forgotten


def key_of(name: str, version: AdapterVersion) -> str:
    """The decoder's name of a version: no two contents share one."""
    return f"{name}@{version.version}#{version.digest[:12]}"
