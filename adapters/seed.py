"""The seed, a folder with `catalog.yaml` and the adapters' files: written by promotions, followed
by the catalogue that grew out of it.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from adapters.bases.names import is_same_base
from adapters.catalog import CATALOG_FILE, Catalog, load_catalog, validated
from adapters.storage.atomic import locked, write_atomically
from adapters.validation import file_record
from adapters.versions import SEED_PATH, SEED_SOURCE, AdapterVersion, RegisteredAdapter

_PROMPTED = {"name", "prompt_format", "system_line", "languages"}


def seed_version(folder: Path, path: str, **fields: Any) -> AdapterVersion:
    """Record the files of `folder`, which lie or will lie in `path` below the seed's folder.

    Args:
        fields: of AdapterVersion that the files do not tell: version, rank, evaluation, ...
    """
    record = file_record(folder)
    return AdapterVersion(path=f"{SEED_PATH}{path}", source=SEED_SOURCE, **(record | fields))


def seed_lock(directory: Path) -> AbstractContextManager[None]:
    """Keep other promotions out while the seed is read and written. Raises as `locked`."""
    return locked(directory / f".{CATALOG_FILE}.lock")


def put_adapter(directory: Path, adapter: RegisteredAdapter) -> None:
    """Replace the seed's adapter of this name, or add it at the end.

    Raises:
        CatalogError: the seed, or what it would become, is not valid; it is left as it was.
        OSError: it cannot be written; it is left as it was.
    """
    catalog = load_catalog(directory)
    listed = {a.name: a for a in catalog.adapters} | {adapter.name: adapter}
    changed = {**dict(catalog), "adapters": list(listed.values())}
    write_seed(directory, validated(changed, directory / CATALOG_FILE))


def write_seed(directory: Path, catalog: Catalog) -> None:
    """Replace the seed's catalog.yaml in one step. Comments at the file's start stay; those
    further down do not.

    Raises:
        OSError: it cannot be written; it is left as it was.
    """
    file = directory / CATALOG_FILE
    content = catalog.model_dump(exclude_defaults=True)
    # Whole: a default that changes later may not change how a base is prompted.
    content["base_models"] = [
        entry.model_dump(include=_PROMPTED) | entry.model_dump(exclude_unset=True)
        for entry in catalog.base_models
    ]
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write_atomically(file, (_head(file) + text).encode())


class _Dumper(yaml.SafeDumper):
    """Writes a list of plain values on one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> Any:
        is_plain = not any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=is_plain)


def _head(file: Path) -> str:
    """Return the comments and empty lines at the file's start."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            return "".join(lines[:number])
    return "".join(lines)


def reseed(catalog: Catalog, seed: Catalog) -> Catalog:
    """Return `catalog` with what the seed has become: untouched adapters follow the seed.

    An adapter is touched when it has a version that is not the seed's. Deleted names stay away,
    and an adapter whose specialty another one serves stays out, or as it was.
    """
    seeded = {a.name: a for a in seed.adapters}
    kept = [_followed(a, seeded.pop(a.name, None), catalog) for a in catalog.adapters]
    added = [
        a for a in seeded.values() if a.name not in catalog.removed and not _has_rival(a, kept)
    ]
    adapters = [*kept, *added]
    return catalog.model_copy(update={"adapters": adapters, "base_models": seed.base_models})


def _followed(
    adapter: RegisteredAdapter, fresh: RegisteredAdapter | None, catalog: Catalog
) -> RegisteredAdapter:
    """Return the seed's adapter in place of the one that it was before, or `adapter`."""
    is_touched = bool(adapter.previous) or any(v.source != SEED_SOURCE for v in adapter.versions)
    if fresh is None or is_touched or adapter.state == "disabled":
        return adapter
    if fresh.stable.digest == adapter.stable.digest or _has_rival(fresh, catalog.adapters):
        return adapter
    return fresh.model_copy(update={"pinned": adapter.pinned})


def _has_rival(fresh: RegisteredAdapter, adapters: Iterable[RegisteredAdapter]) -> bool:
    """Say whether an adapter of another name serves its specialty."""
    return bool(fresh.served) and any(
        other.served
        and other.name != fresh.name
        and other.specialty == fresh.specialty
        and is_same_base(other.base_model, fresh.base_model)
        for other in adapters
    )
