"""All adapters of a seed are checked, and every problem is listed."""

import shutil
from pathlib import Path

import pytest

from adapters.seed_check import AdapterError, check_seed
from adapters.store import AdapterStore, open_store

Catalogs = dict[str, tuple[Path, Path]]


@pytest.fixture
def store(tiny_catalogs: Catalogs, tmp_path: Path) -> AdapterStore:
    seed = Path(shutil.copytree(tiny_catalogs["llama"][1], tmp_path / "catalogue"))
    return open_store(tmp_path / "state", seed, tmp_path / "cache")


def test_the_active_adapters_of_the_base(tiny_catalogs: Catalogs, store: AdapterStore) -> None:
    base = str(tiny_catalogs["llama"][0])
    assert [adapter.name for adapter in check_seed(store, base)] == ["derm", "cardio"]
    assert check_seed(store, "another") == ()


def test_all_problems_of_all_adapters(tiny_catalogs: Catalogs, store: AdapterStore) -> None:
    (store.seed_dir / "weights/derm/adapter_config.json").unlink()
    (store.seed_dir / "weights/cardio/adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterError) as caught:
        check_seed(store, str(tiny_catalogs["llama"][0]))
    assert len(caught.value.problems) == 2
    text = str(caught.value)
    for part in ("'derm'", "missing", "'cardio'", "its sha256 is", "git checkout", "disabled"):
        assert part in text


def test_files_that_are_listed_and_yet_not_fit(
    tiny_catalogs: Catalogs, store: AdapterStore
) -> None:
    """As after a promotion by hand: the checksums are right, the content is not."""
    from adapters.catalog import load_catalog
    from adapters.seed import put_adapter, seed_version

    path = "weights/derm"
    (store.seed_dir / path / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle")
    derm = load_catalog(store.seed_dir).adapter("derm")
    assert derm is not None
    version = seed_version(store.seed_dir / path, path, version="1", rank=5)
    put_adapter(store.seed_dir, derm.model_copy(update={"versions": [version]}))
    fresh = open_store(store.location, store.seed_dir, store.seed_dir)
    with pytest.raises(AdapterError) as caught:
        check_seed(fresh, str(tiny_catalogs["llama"][0]))
    assert "r is 4, and the catalogue says 5" in caught.value.problems[0]
    assert "a pickle, not safetensors" in caught.value.problems[1]
