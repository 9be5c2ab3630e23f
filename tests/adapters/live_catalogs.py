"""A seed catalogue with files of a few bytes, and versions to add to it: no torch, no model."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters import changes
from adapters.catalog import Catalog
from adapters.seed import seed_version, write_seed
from adapters.storage.atomic import FileCalls
from adapters.storage.local import LocalStorage
from adapters.storage.protocol import WEIGHTS
from adapters.store import AdapterStore
from adapters.versions import AdapterVersion, RegisteredAdapter, bundle_digest

Edit = Callable[[Catalog], Catalog]


def write_bundle(folder: Path, text: str) -> AdapterVersion:
    """Two small files in `folder`, and the record that lists them as version `text`."""
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = f'{{"r": 1, "text": "{text}"}}'.encode(), text.encode()
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    config_sha256 = hashlib.sha256(config).hexdigest()
    sha256 = hashlib.sha256(weights).hexdigest()
    return AdapterVersion(
        version=text,
        sha256=sha256,
        config_sha256=config_sha256,
        path=f"{WEIGHTS}/{bundle_digest(config_sha256, sha256)}",
        source="/somewhere",
        rank=1,
        num_bytes=len(config) + len(weights),
        added_at="2026-11-25T00:00:00+00:00",
    )


def make_seed(
    folder: Path, version: str = "1", names: tuple[str, ...] = ("derm", "cardio")
) -> Path:
    """A seed of one version each; the specialty is the name."""
    adapters = []
    for name in names:
        write_bundle(folder / "weights" / name, f"{name}-{version}")
        path = f"weights/{name}"
        record = seed_version(folder / path, path, version=version, rank=1)
        adapters.append(
            RegisteredAdapter(
                name=name,
                specialty=name,
                base_model="tiny",
                state="active",
                version=version,
                versions=[record],
            )
        )
    write_seed(folder, Catalog(revision=0, adapters=adapters))
    return folder


def store_of(seed: Path, state: Path, calls: FileCalls | None = None) -> AdapterStore:
    return AdapterStore(LocalStorage(state, calls), seed, state / "cache")


def add(store: AdapterStore, scratch: Path, name: str, version: str, **options: Any) -> Catalog:
    record = write_bundle(scratch / version, version)
    store.put(record.digest, scratch / version)
    return store.change(
        lambda c: changes.add_version(
            c, name=name, specialty=name, base_model="tiny", version=record, **options
        )
    )
