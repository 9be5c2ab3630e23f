"""All adapters of a catalogue are checked, and every problem is listed."""

import shutil
from pathlib import Path

import pytest

from adapters.catalog import load_catalog
from adapters.loading import AdapterError, check_catalogued

Catalogs = dict[str, tuple[Path, Path]]


@pytest.fixture
def catalogue(tiny_catalogs: Catalogs, tmp_path: Path) -> tuple[str, Path]:
    base, folder = tiny_catalogs["llama"]
    return str(base), Path(shutil.copytree(folder, tmp_path / "catalogue"))


def test_the_active_adapters_of_the_base(catalogue: tuple[str, Path]) -> None:
    base, folder = catalogue
    catalog = load_catalog(folder)
    assert [entry.name for entry in check_catalogued(catalog, base)] == ["derm", "cardio"]
    assert check_catalogued(catalog, "another") == ()


def test_all_problems_of_all_adapters(catalogue: tuple[str, Path]) -> None:
    base, folder = catalogue
    (folder / "weights/derm/adapter_config.json").unlink()
    (folder / "weights/cardio/adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterError) as caught:
        check_catalogued(load_catalog(folder), base)
    assert len(caught.value.problems) == 2
    text = str(caught.value)
    assert all(part in text for part in ("'derm'", "'cardio'", "git checkout", "state: disabled"))
