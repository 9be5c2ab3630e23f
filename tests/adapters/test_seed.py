"""What a promotion writes: one adapter changes, in one step, or nothing does."""

import errno
from pathlib import Path

import pytest

from adapters.catalog import Catalog, CatalogError, load_catalog
from adapters.seed import put_adapter, seed_version
from adapters.versions import RegisteredAdapter
from tests.adapters.live_catalogs import make_seed, write_bundle

HEAD = "# ours\n\n# and this\n"


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    folder = make_seed(tmp_path / "seed")
    file = folder / "catalog.yaml"
    file.write_text(HEAD + file.read_text())
    return folder


def adapter_of(seed: Path, name: str, specialty: str, text: str) -> RegisteredAdapter:
    write_bundle(seed / "weights" / name, text)
    path = f"weights/{name}"
    evaluation = {"interval": [-0.5, 0.25], "commit": "0123e45"}
    version = seed_version(seed / path, path, version="2", rank=1, evaluation=evaluation)
    return RegisteredAdapter(
        name=name,
        specialty=specialty,
        base_model="tiny",
        state="active",
        version="2",
        versions=[version],
    )


@pytest.mark.parametrize(("name", "order"), [("derm", 0), ("cardio", 1), ("onco", 2)])
def test_one_adapter_is_replaced_or_added_and_the_others_stay(
    name: str, order: int, seed: Path
) -> None:
    before = {a.name: a for a in load_catalog(seed).adapters}
    fresh = adapter_of(seed, name, name, "new")
    put_adapter(seed, fresh)
    after = load_catalog(seed).adapters
    assert after[order] == fresh
    assert {a.name: a for a in after} == before | {name: fresh}
    text = (seed / "catalog.yaml").read_text()
    assert text.startswith(HEAD + "revision: 0\n")
    assert "interval: [-0.5, 0.25]" in text
    put_adapter(seed, fresh)
    assert (seed / "catalog.yaml").read_text() == text, "again changes nothing"


def test_how_bases_are_prompted_is_written_whole(seed: Path) -> None:
    """A default that changes later may not change how a base is prompted."""
    file = seed / "catalog.yaml"
    bases = "base_models: [{name: tiny, prompt_format: chat, languages: [en]}]\n"
    file.write_text(file.read_text().replace("base_models: []\n", bases))
    put_adapter(seed, adapter_of(seed, "onco", "onco", "new"))
    assert "system_line: You are a medical assistant." in file.read_text()


def test_what_would_not_load_is_not_written(seed: Path) -> None:
    before = (seed / "catalog.yaml").read_bytes()
    with pytest.raises(CatalogError, match=r"two adapters in service: \['derm on tiny'\]"):
        put_adapter(seed, adapter_of(seed, "skin", "derm", "new"))
    assert (seed / "catalog.yaml").read_bytes() == before


@pytest.mark.parametrize("call", ["write", "sync", "rename"])
def test_a_full_disk_leaves_the_seed_as_it_was(
    call: str, seed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (seed / "catalog.yaml").read_bytes()
    fresh = adapter_of(seed, "onco", "onco", "new")
    monkeypatch.setattr(f"adapters.storage.atomic.FileCalls.{call}", full)
    with pytest.raises(OSError, match="No space left"):
        put_adapter(seed, fresh)
    assert (seed / "catalog.yaml").read_bytes() == before
    assert not list(seed.glob(".new-*"))


def test_two_names_of_one_base_are_rivals_too() -> None:
    """Else a specialty had two adapters in service, and one of them would never answer."""

    def serving(name: str, base_model: str) -> RegisteredAdapter:
        fields = {"sha256": "0" * 64, "config_sha256": "0" * 64, "path": "seed:x"}
        version = {"version": "1", "source": "seed", "rank": 1, "num_bytes": 1, **fields}
        return RegisteredAdapter.model_validate(
            {
                "name": name,
                "specialty": "dermatology",
                "base_model": base_model,
                "state": "active",
                "version": "1",
                "versions": [version],
            }
        )

    adapters = [serving("a", "google/flan-t5-xl"), serving("b", "/srv/flan-t5-xl")]
    with pytest.raises(ValueError, match="two adapters in service"):
        Catalog(revision=0, adapters=adapters)
    Catalog(revision=0, adapters=[adapters[0], serving("b", "google/flan-t5-base")])
