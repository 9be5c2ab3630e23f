"""A seed catalogue with files of a few bytes, and versions to add to it: no torch, no model."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from adapters import changes
from adapters.catalog import load_catalog
from adapters.live_catalog import AdapterVersion, LiveCatalog, bundle_digest
from adapters.storage.local import WEIGHTS, FileCalls, LocalStorage
from adapters.store import AdapterStore

Edit = Callable[[LiveCatalog], LiveCatalog]


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
    entries = []
    for name in names:
        record = write_bundle(folder / "weights" / name, f"{name}-{version}")
        entries.append(
            {
                "name": name,
                "specialty": name,
                "base_model": "tiny",
                "path": f"weights/{name}",
                "sha256": record.sha256,
                "version": version,
                "rank": 1,
            }
        )
    (folder / "catalog.yaml").write_text(yaml.safe_dump({"adapters": entries}))
    return folder


def store_of(seed: Path, state: Path, calls: FileCalls | None = None) -> AdapterStore:
    return AdapterStore(LocalStorage(state, calls), load_catalog(seed), state / "cache")


def add(store: AdapterStore, scratch: Path, name: str, version: str, **options: Any) -> LiveCatalog:
    record = write_bundle(scratch / version, version)
    store.put(record.digest, scratch / version)
    return store.change(
        lambda c: changes.add_version(
            c, name=name, specialty=name, base_model="tiny", version=record, **options
        )
    )
