"""The live catalogue: which version of which adapter is in service, and those it can return to.

`<state_dir>/catalog.yaml` holds it once something was changed; before that it is the read-only
seed (`adapters/catalog.yaml`). Immutable data, no I/O: store.py reads and writes it, changes.py
makes a new one from an old one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.catalog import AdapterEntry, Catalog, checked_adapter_name

MAX_ADAPTERS = 10_000
MAX_VERSIONS = 50  # kept for each adapter; the oldest that is not in service goes first
SEED_SOURCE = "seed"
SEED_PATH = "seed:"  # path of a version that still lies in the seed's folder
VERSION = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class LiveCatalogError(ValueError):
    """The live catalogue cannot be read, or what was to be written is not one."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AdapterVersion(_Strict):
    """One version: its files, never changed once it is listed."""

    version: Annotated[str, Field(pattern=VERSION)]
    sha256: Annotated[Sha256, Field(description="of adapter_model.safetensors")]
    config_sha256: Annotated[Sha256, Field(description="of adapter_config.json")]
    path: Annotated[str, Field(min_length=1, max_length=1024)]
    source: Annotated[str, Field(min_length=1, max_length=2048, description="where it came from")]
    rank: Annotated[int, Field(ge=1, le=1024)]
    num_bytes: Annotated[int, Field(ge=0)]
    added_at: Annotated[str, Field(max_length=40, description="ISO 8601, UTC")]
    languages: list[str] = ["en"]
    evaluation: dict[str, Any] = {}

    @property
    def digest(self) -> str:
        """Names the content: both files."""
        return bundle_digest(self.config_sha256, self.sha256)


class Canary(_Strict):
    """A version on trial, and the share of its specialty's sessions that it answers."""

    version: Annotated[str, Field(pattern=VERSION)]
    weight: Annotated[float, Field(gt=0, le=1)]


class LiveAdapter(_Strict):
    """An adapter and its versions.

    previous: versions that were in force before, oldest first.
    pinned: its versions in service stay on the device whatever else is asked for.
    """

    name: Annotated[str, AfterValidator(checked_adapter_name)]
    specialty: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,63}$")]
    base_model: Annotated[str, Field(min_length=1, max_length=4096)]
    state: Literal["active", "canary", "disabled"]
    version: Annotated[str, Field(pattern=VERSION, description="in force")]
    canary: Canary | None = None
    previous: list[str] = []
    reason: Annotated[str, Field(max_length=500, description="why it is disabled")] = ""
    pinned: bool = False
    versions: Annotated[list[AdapterVersion], Field(min_length=1, max_length=MAX_VERSIONS)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [v.version for v in self.versions]
        if len(set(names)) < len(names):
            raise ValueError(f"a version is listed twice: {names}")
        wanted = [self.version, *self.previous, *([self.canary.version] if self.canary else [])]
        missing = sorted(set(wanted) - set(names))
        if missing:
            raise ValueError(f"versions {missing} are named but not listed (listed: {names})")
        if (self.state == "canary") != (self.canary is not None):
            raise ValueError(f"state is {self.state}, and canary is {self.canary}")
        if self.canary and self.canary.version == self.version:
            raise ValueError(f"version {self.version} is in force and on trial at once")
        return self

    @property
    def stable(self) -> AdapterVersion:
        return self.find(self.version)

    @property
    def served(self) -> tuple[AdapterVersion, ...]:
        """The versions that answer questions now: none, one, or two with a canary."""
        if self.state == "disabled":
            return ()
        return (self.stable, self.find(self.canary.version)) if self.canary else (self.stable,)

    def find(self, version: str) -> AdapterVersion:
        """
        Raises:
            KeyError: not listed.
        """
        for found in self.versions:
            if found.version == version:
                return found
        raise KeyError(version)


class LiveCatalog(_Strict):
    """`revision` counts changes; 0 is the seed. `removed`: names of the seed that were deleted."""

    format: Literal[1] = 1
    revision: Annotated[int, Field(ge=0)]
    adapters: Annotated[list[LiveAdapter], Field(max_length=MAX_ADAPTERS)]
    removed: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [a.name for a in self.adapters]
        if len(set(names)) < len(names):
            raise ValueError(f"an adapter is listed twice: {_twice(names)}")
        served = [f"{a.specialty} on {a.base_model}" for a in self.adapters if a.served]
        if len(set(served)) < len(served):
            raise ValueError(f"a specialty has two adapters in service: {_twice(served)}")
        return self

    def adapter(self, name: str) -> LiveAdapter | None:
        return next((a for a in self.adapters if a.name == name), None)

    def in_service(self, base_model: str) -> tuple[LiveAdapter, ...]:
        return tuple(a for a in self.adapters if a.base_model == base_model and a.served)

    def skipped(self, base_model: str) -> dict[str, str]:
        """Name -> why an adapter is not served on this base."""
        reasons = {}
        for a in self.adapters:
            if a.base_model != base_model:
                reasons[a.name] = f"trained on {a.base_model}, and the base model is {base_model}"
            elif not a.served:
                reasons[a.name] = "its state is disabled" + (f": {a.reason}" if a.reason else "")
        return reasons

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(v.digest for a in self.adapters for v in a.versions)


def bundle_digest(config_sha256: str, weights_sha256: str) -> str:
    return hashlib.sha256(f"{config_sha256}\n{weights_sha256}\n".encode()).hexdigest()


def dump(catalog: LiveCatalog) -> bytes:
    """YAML in JSON's way, which every replica reads some thirty times faster than block style.
    `num_adapters` comes last, so that a file that was cut off is noticed."""
    content = catalog.model_dump() | {"num_adapters": len(catalog.adapters)}
    return (json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def parse(content: bytes, where: str) -> LiveCatalog:
    """
    Raises:
        LiveCatalogError: cut off, not YAML, or against a rule; names the first problems.
    """
    try:
        found = _loaded(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise LiveCatalogError(
            f"{where}: was cut off, or is not YAML ({type(error).__name__})"
        ) from None
    if not isinstance(found, dict) or "num_adapters" not in found:
        raise LiveCatalogError(f"{where}: was cut off, or is no live catalogue")
    num_adapters = found.pop("num_adapters")
    try:
        catalog = LiveCatalog.model_validate(found)
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        lines = [f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg']}" for p in problems[:5]]
        raise LiveCatalogError(f"{where}: {'; '.join(lines)}") from None
    if len(catalog.adapters) != num_adapters:
        raise LiveCatalogError(
            f"{where}: holds {len(catalog.adapters)} adapters, and says {num_adapters}"
        )
    return catalog


def _loaded(content: bytes) -> Any:
    """JSON, as `dump` writes it, or any other YAML, as an operator may."""
    try:
        return json.loads(content)
    except ValueError:
        return yaml.load(content, Loader=Loader)  # a safe loader


def from_seed(seed: Catalog, configs: Mapping[str, tuple[str, int]]) -> LiveCatalog:
    """The seed as a live catalogue of revision 0.

    Args:
        configs: adapter's name -> (sha256 of its adapter_config.json, bytes of both files).

    Raises:
        LiveCatalogError: an entry that the live catalogue cannot hold, such as a bad version.
    """
    try:
        adapters = [_from_entry(entry, *configs[entry.name]) for entry in seed.adapters]
        return LiveCatalog(revision=0, adapters=adapters)
    except ValidationError as error:
        raise LiveCatalogError(f"the seed catalogue {seed.directory}: {error}") from None


def _from_entry(entry: AdapterEntry, config_sha256: str, num_bytes: int) -> LiveAdapter:
    version = AdapterVersion(
        version=entry.version,
        sha256=entry.sha256,
        config_sha256=config_sha256,
        path=f"{SEED_PATH}{entry.path}",
        source=SEED_SOURCE,
        rank=entry.rank,
        num_bytes=num_bytes,
        added_at="",
        languages=list(entry.languages),
        evaluation=dict(entry.evaluation),
    )
    return LiveAdapter(
        name=entry.name,
        specialty=entry.specialty,
        base_model=entry.base_model,
        state=entry.state,
        version=entry.version,
        reason=entry.reason,
        versions=[version],
    )


def reseed(live: LiveCatalog, seed: LiveCatalog) -> LiveCatalog:
    """`live` with what the seed has become since: adapters that nobody touched follow the seed.

    An adapter counts as touched when it has a version that is not the seed's. Names that were
    deleted stay away, and one whose specialty another adapter serves stays out, or as it was.
    """
    from_seed = {a.name: a for a in seed.adapters}
    kept = []
    for adapter in live.adapters:
        fresh = from_seed.pop(adapter.name, None)
        untouched = all(v.source == SEED_SOURCE for v in adapter.versions) and not adapter.previous
        has_changed = fresh is not None and fresh.stable.digest != adapter.stable.digest
        follows = untouched and has_changed and adapter.state != "disabled"
        if fresh is not None and follows and not _is_taken(fresh, live):
            kept.append(fresh.model_copy(update={"pinned": adapter.pinned}))
        else:
            kept.append(adapter)
    taken = {(a.base_model, a.specialty) for a in kept if a.served}
    added = [
        a
        for a in from_seed.values()
        if a.name not in live.removed and not (a.served and (a.base_model, a.specialty) in taken)
    ]
    return live.model_copy(update={"adapters": [*kept, *added]})


def _is_taken(fresh: LiveAdapter, live: LiveCatalog) -> bool:
    """Whether an adapter of another name serves its specialty."""
    wanted = (fresh.base_model, fresh.specialty)
    return bool(fresh.served) and any(
        other.served and (other.base_model, other.specialty) == wanted
        for other in live.adapters
        if other.name != fresh.name
    )


def _twice(items: Iterable[str]) -> list[str]:
    listed = list(items)
    return sorted({item for item in listed if listed.count(item) > 1})
