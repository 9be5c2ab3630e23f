"""What may become a version; everything else is refused at once, by name, leaving nothing."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.ingest import IngestRefused, VersionRequest, ingest
from adapters.sources import SourceError, SourceLimits
from adapters.storage.local import LocalStorage
from adapters.storage.protocol import StorageError
from adapters.store import AdapterStore
from adapters.verify import verify_folder
from tests.adapters.test_sources import hub_cache
from tests.adapters.test_store import FullDisk

Catalogs = dict[str, tuple[Path, Path]]
LIMITS = SourceLimits(max_bytes=2**20, timeout_s=5)


@pytest.fixture
def source(tiny_catalogs: Catalogs, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_catalogs["llama"][1] / "weights" / "derm", tmp_path / "derm"))


@pytest.fixture
def store(tiny_catalogs: Catalogs, tmp_path: Path) -> AdapterStore:
    seed_dir = tiny_catalogs["llama"][1]
    return AdapterStore(LocalStorage(tmp_path / "state"), seed_dir, tmp_path / "cache")


@pytest.fixture
def wanted(tiny_catalogs: Catalogs, source: Path) -> VersionRequest:
    return VersionRequest("derm", "dermatology", str(tiny_catalogs["llama"][0]), "2", str(source))


def nothing_kept(store: AdapterStore) -> bool:
    folder = Path(store.location) / "weights"
    return not folder.is_dir() or not list(folder.iterdir())


def refused(wanted: VersionRequest, store: AdapterStore) -> list[str]:
    with pytest.raises(IngestRefused) as caught:
        ingest(wanted, store, LIMITS)
    assert nothing_kept(store)
    return caught.value.problems


def test_a_good_adapter_is_kept_by_its_content(wanted: VersionRequest, store: AdapterStore) -> None:
    first = ingest(wanted, store, LIMITS).version
    again = ingest(wanted, store, LIMITS)
    assert (again.version.digest, again.token) == (first.digest, None)
    assert first.rank == 4
    kept = store.folder(first)
    assert kept.name == first.digest
    assert sorted(p.name for p in kept.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_adapter_of_another_peft_version_is_taken(
    wanted: VersionRequest, store: AdapterStore, source: Path
) -> None:
    file = source / "adapter_config.json"
    config = json.loads(file.read_text()) | {"peft_version": "0.99.0", "a_later_field": None}
    file.write_text(json.dumps(config))
    assert ingest(wanted, store, LIMITS).version.rank == 4


def pickled(folder: Path) -> None:
    torch.save({"x": torch.ones(2)}, folder / "adapter_model.safetensors")


def old_pickle(folder: Path) -> None:
    import pickle

    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"x": 1}))


def cut_off(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def header_only(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 7)


def with_a_tail(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes() + b"#!/bin/sh")


def edited(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        state = load_file(file)
        change(state)
        save_file(state, file)

    return edit


def nan(state: dict[str, torch.Tensor]) -> None:
    next(iter(state.values()))[0, 0] = torch.nan


def bfloat16_infinity(state: dict[str, torch.Tensor]) -> None:
    for name in state:
        state[name] = state[name].bfloat16()
    next(iter(state.values()))[0, 0] = -torch.inf


def integers(state: dict[str, torch.Tensor]) -> None:
    name = next(iter(state))
    state[name] = state[name].to(torch.int64)


def silent(state: dict[str, torch.Tensor]) -> None:
    for name in state:
        if "lora_B" in name:
            state[name] = -torch.zeros_like(state[name])


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (pickled, r"a zip archive \(torch.save writes those: a pickle\), not safetensors"),
        (old_pickle, "a pickle, not safetensors"),
        (cut_off, "cut off, damaged, or not safetensors: .*file not fully covered"),
        (header_only, "cut off, damaged, or not safetensors: .*header too small"),
        (with_a_tail, "cut off, damaged, or not safetensors: .*file not fully covered"),
        (edited(nan), "holds NaN or infinity"),
        (edited(bfloat16_infinity), "holds NaN or infinity"),
        (edited(integers), "has dtype 'I64'"),
        (edited(silent), "every lora_B is zero"),
    ],
)
def test_weights_that_are_not_fit(
    spoil: Callable[[Path], None],
    part: str,
    wanted: VersionRequest,
    store: AdapterStore,
    source: Path,
) -> None:
    spoil(source)
    problems = refused(wanted, store)
    assert re.search(part, "\n".join(problems))
    assert "/tmp" not in "\n".join(problems)


def test_every_problem_is_listed_at_once(
    wanted: VersionRequest, store: AdapterStore, source: Path
) -> None:
    file = source / "adapter_config.json"
    config = json.loads(file.read_text())
    config |= {"base_model_name_or_path": "other/base", "r": 999}
    file.write_text(json.dumps(config))
    edited(nan)(source)
    text = "\n".join(refused(wanted, store))
    for part in ("'other/base'", "999", "NaN"):
        assert part in text


def test_a_source_that_is_too_large(wanted: VersionRequest, store: AdapterStore) -> None:
    with pytest.raises(SourceError, match="more than the 100 bytes allowed"):
        ingest(wanted, store, SourceLimits(max_bytes=100, timeout_s=5))
    assert nothing_kept(store)


def test_a_full_disk(wanted: VersionRequest, tiny_catalogs: Catalogs, tmp_path: Path) -> None:
    files = LocalStorage(tmp_path / "state", FullDisk())
    store = AdapterStore(files, tiny_catalogs["llama"][1], tmp_path / "cache")
    with pytest.raises(StorageError, match="No space left"):
        ingest(wanted, store, LIMITS)
    assert nothing_kept(store)


def trainer_checkpoint(source: Path, tmp_path: Path) -> Path:
    """Beside the adapter lie the optimizer's state and more, pickled."""
    torch.save({"step": 1}, source / "optimizer.pt")
    torch.save({"seed": 1}, source / "rng_state.pth")
    return source


def linked_folder(source: Path, tmp_path: Path) -> Path:
    (tmp_path / "link").symlink_to(source)
    return tmp_path / "link"


def linked_file(source: Path, tmp_path: Path) -> Path:
    (source / "adapter_config.json").rename(tmp_path / "config.json")
    (source / "adapter_config.json").symlink_to(tmp_path / "config.json")
    return source


def snapshot(source: Path, tmp_path: Path) -> Path:
    return hub_cache(source, tmp_path / "hub")


def with_nan(source: Path, tmp_path: Path) -> Path:
    edited(nan)(source)
    return source


def unchanged(source: Path, tmp_path: Path) -> Path:
    return source


@pytest.mark.parametrize(
    ("make", "is_taken"),
    [
        (unchanged, True),
        (trainer_checkpoint, True),
        (snapshot, True),
        (linked_folder, False),
        (linked_file, False),
        (with_nan, False),
    ],
)
def test_verify_and_add_agree(
    make: Callable[[Path, Path], Path],
    is_taken: bool,
    wanted: VersionRequest,
    store: AdapterStore,
    source: Path,
    tmp_path: Path,
) -> None:
    folder = make(source, tmp_path)
    assert (verify_folder(folder, None, 256) == 0) == is_taken
    wanted = dataclasses.replace(wanted, source=str(folder))
    if is_taken:
        ingest(wanted, store, LIMITS)
    else:
        with pytest.raises((IngestRefused, SourceError)):
            ingest(wanted, store, LIMITS)
