"""Changes of the catalogue: pure functions, each from a catalogue to the next one.

A refusal lists every problem and says whether the request is wrong (`invalid`), names something
that is not there (`not_found`), or collides with what is there (`conflict`).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ValidationError

from adapters.bases.names import is_same_base
from adapters.catalog import Catalog, problems_of
from adapters.versions import (
    MAX_VERSIONS,
    SEED_SOURCE,
    AdapterVersion,
    Canary,
    RegisteredAdapter,
)

RefusalKind = Literal["invalid", "not_found", "conflict"]
Activation = Literal["active", "canary", "disabled"]


class ChangeRefused(ValueError):
    """The catalogue stays as it is. `problems` holds one line for each thing that is wrong."""

    def __init__(self, kind: RefusalKind, problems: Sequence[str]) -> None:
        self.kind = kind
        self.problems = list(problems)
        super().__init__("; ".join(problems))


def add_version(
    catalog: Catalog,
    *,
    name: str,
    specialty: str | None,
    base_model: str,
    version: AdapterVersion,
    activation: Activation = "active",
    weight: float | None = None,
    pinned: bool | None = None,
) -> Catalog:
    """Add a new adapter, or a new version of one.

    Args:
        specialty: None if it is the one that the adapter has.
        activation: active: it answers at once; canary: it gets `weight` of the specialty's
            sessions in place of the serving version; disabled: it is only kept.
        pinned: None if the adapter stays as it is; a new one is not pinned.

    Raises:
        ChangeRefused: lists all that is wrong.
    """
    found = catalog.adapter(name)
    if found is None:
        return _add_adapter(catalog, name, specialty, base_model, version, activation, bool(pinned))
    problems = _collisions(found, specialty, base_model, version)
    if problems:
        raise ChangeRefused("conflict", problems)
    grown = _with_versions(found, [*_with_room(found), version])
    if pinned is not None:
        grown = _set(grown, pinned=pinned)
    if activation == "canary":
        changed = _with_canary(grown, version.version, weight)
    elif activation == "active":
        changed = _activated(grown, version.version)
    else:
        changed = grown
    return _replaced(catalog, changed)


def update(
    catalog: Catalog,
    name: str,
    *,
    state: Literal["active", "disabled"] | None = None,
    version: str | None = None,
    canary_version: str | None = None,
    canary_weight: float | None = None,
    promote: bool = False,
    pinned: bool | None = None,
    reason: str = "",
) -> Catalog:
    """Activate, disable, switch to a known version, try one out, promote the one on trial, or
    pin and unpin the adapter.

    Raises:
        ChangeRefused: there is no such adapter or version, or fields exclude each other.
    """
    found = _required(catalog, name)
    asked = {
        "state": state is not None,
        "version": version is not None,
        "canary_weight": canary_weight is not None or canary_version is not None,
        "promote": promote,
        "pinned": pinned is not None,
    }
    _check_fields(asked, reason, state)
    if pinned is not None:
        changed = _set(found, pinned=pinned)
    elif promote:
        if found.canary is None:
            raise ChangeRefused("conflict", [f"adapter '{name}' has no version on trial"])
        changed = _activated(found, found.canary.version)
    elif version is not None:
        changed = _activated(found, _known(found, version))
    elif state == "disabled":
        changed = _set(found, state="disabled", canary=None, reason=reason)
    elif state == "active":
        changed = _set(found, state="canary" if found.canary else "active", reason="")
    else:
        changed = _weighted(found, canary_version, canary_weight)
    return _replaced(catalog, changed)


def roll_back(catalog: Catalog, name: str) -> Catalog:
    """End a trial; without one, return to the version that served before.

    Raises:
        ChangeRefused: there is no such adapter, or no version to return to.
    """
    found = _required(catalog, name)
    if found.canary is not None:
        return _replaced(catalog, _set(found, state="active", canary=None))
    if not found.previous:
        raise ChangeRefused(
            "conflict", [f"adapter '{name}' has no version before '{found.version}'"]
        )
    return _replaced(catalog, _set(found, version=found.previous[-1], previous=found.previous[:-1]))


def remove(catalog: Catalog, name: str) -> Catalog:
    """Take an adapter out of the catalogue.

    Raises:
        ChangeRefused: there is no such adapter.
    """
    gone = _required(catalog, name)
    left = [a for a in catalog.adapters if a.name != name]
    is_of_seed = any(version.source == SEED_SOURCE for version in gone.versions)
    removed = sorted({*catalog.removed, name}) if is_of_seed else catalog.removed
    return catalog.model_copy(update={"adapters": left, "removed": removed})


def _check_fields(asked: Mapping[str, bool], reason: str, state: str | None) -> None:
    """Refuse more than one change at a time, and a reason without `disabled`."""
    problems = []
    given = [field for field, is_given in asked.items() if is_given]
    if len(given) != 1:
        problems.append(f"give one of {', '.join(asked)} (given: {', '.join(given) or 'none'})")
    if reason and state != "disabled":
        problems.append("reason goes with state: disabled only: leave it out")
    if problems:
        raise ChangeRefused("invalid", problems)


def _collisions(
    found: RegisteredAdapter, specialty: str | None, base_model: str, version: AdapterVersion
) -> list[str]:
    """Return what keeps `version` from being one of this adapter's."""
    problems = []
    if specialty is not None and specialty != found.specialty:
        problems.append(f"adapter '{found.name}' is for {found.specialty}, not {specialty}")
    if not is_same_base(found.base_model, base_model):
        problems.append(f"adapter '{found.name}' is for {found.base_model}, not {base_model}")
    if any(v.version == version.version for v in found.versions):
        problems.append(
            f"adapter '{found.name}' has a version '{version.version}' already: give it another "
            f"(listed: {', '.join(v.version for v in found.versions)})"
        )
    return problems


def _add_adapter(
    catalog: Catalog,
    name: str,
    specialty: str | None,
    base_model: str,
    version: AdapterVersion,
    activation: Activation,
    pinned: bool,
) -> Catalog:
    if specialty is None:
        raise ChangeRefused("invalid", [f"adapter '{name}' is new: name its specialty"])
    if activation == "canary":
        raise ChangeRefused(
            "conflict",
            [f"adapter '{name}' is new: there is no serving version to compare it with"],
        )
    try:
        fresh = RegisteredAdapter(
            name=name,
            specialty=specialty,
            base_model=base_model,
            state=activation,
            version=version.version,
            pinned=pinned,
            versions=[version],
        )
    except ValidationError as error:
        raise ChangeRefused("invalid", problems_of(error)) from None
    adapters = [*catalog.adapters, fresh]
    return _checked(catalog.model_copy(update={"adapters": adapters}))


def _weighted(
    adapter: RegisteredAdapter, version: str | None, weight: float | None
) -> RegisteredAdapter:
    if weight is None:
        raise ChangeRefused("invalid", ["canary_weight is missing: above 0 to 1, or 0 to end it"])
    if weight == 0:
        if adapter.canary is None:
            raise ChangeRefused("conflict", [f"adapter '{adapter.name}' has no version on trial"])
        return _set(adapter, state="active", canary=None)
    wanted = version or (adapter.canary.version if adapter.canary else None)
    if wanted is None:
        raise ChangeRefused("invalid", ["canary_version is missing: which version to try out"])
    return _with_canary(adapter, _known(adapter, wanted), weight)


def _with_canary(
    adapter: RegisteredAdapter, version: str, weight: float | None
) -> RegisteredAdapter:
    if adapter.state == "disabled":
        raise ChangeRefused("conflict", [f"adapter '{adapter.name}' is disabled: activate it"])
    if version == adapter.version:
        raise ChangeRefused("conflict", [f"version '{version}' serves already"])
    if weight is None or not 0 < weight <= 1:
        raise ChangeRefused("invalid", [f"canary_weight is {weight}: above 0, at most 1"])
    return _set(adapter, state="canary", canary=Canary(version=version, weight=weight))


def _activated(adapter: RegisteredAdapter, version: str) -> RegisteredAdapter:
    """Let `version` serve, which ends a trial; a roll-back returns to the one before."""
    if version == adapter.version:
        return _set(adapter, state="active", canary=None, reason="")
    previous = [*(v for v in adapter.previous if v != version), adapter.version]
    return _set(adapter, state="active", canary=None, reason="", version=version, previous=previous)


def _with_room(adapter: RegisteredAdapter) -> list[AdapterVersion]:
    """Return the versions without the oldest idle ones, so that one more fits."""
    versions = list(adapter.versions)
    in_use = {adapter.version, *(v.version for v in adapter.served), *adapter.previous[-5:]}
    for old in list(versions):
        if len(versions) < MAX_VERSIONS:
            break
        if old.version not in in_use:
            versions.remove(old)
    return versions


def _known(adapter: RegisteredAdapter, version: str) -> str:
    listed = [v.version for v in adapter.versions]
    if version not in listed:
        raise ChangeRefused(
            "not_found",
            [f"adapter '{adapter.name}' has no version '{version}' (has: {', '.join(listed)})"],
        )
    return version


def _required(catalog: Catalog, name: str) -> RegisteredAdapter:
    found = catalog.adapter(name)
    if found is None:
        names = ", ".join(a.name for a in catalog.adapters) or "none"
        raise ChangeRefused("not_found", [f"no adapter '{name[:80]}' (there are: {names})"])
    return found


def _with_versions(adapter: RegisteredAdapter, versions: list[AdapterVersion]) -> RegisteredAdapter:
    listed = {v.version for v in versions}
    previous = [v for v in adapter.previous if v in listed]
    return _set(adapter, versions=versions, previous=previous)


def _set(adapter: RegisteredAdapter, **fields: object) -> RegisteredAdapter:
    return RegisteredAdapter.model_validate({**dict(adapter), **fields})


def _replaced(catalog: Catalog, changed: RegisteredAdapter) -> Catalog:
    adapters = [changed if a.name == changed.name else a for a in catalog.adapters]
    return _checked(catalog.model_copy(update={"adapters": adapters}))


def _checked(catalog: Catalog) -> Catalog:
    try:
        return Catalog.model_validate(dict(catalog))
    except ValidationError as error:
        raise ChangeRefused("conflict", problems_of(error)) from None
