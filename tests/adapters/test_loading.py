"""All adapters are checked before any is handed over."""

import shutil
from pathlib import Path

import pytest

from adapters.catalog import load_catalog
from adapters.loading import AdapterError, load_catalogued

Catalogs = dict[str, tuple[Path, Path]]


class FakeTarget:
    """Keeps what it was given; refuses the name that it was told to."""

    def __init__(self, refuses: str = "") -> None:
        self.loaded: dict[str, Path] = {}
        self._refuses = refuses

    def load_adapter(self, name: str, directory: Path) -> None:
        if name == self._refuses:
            raise RuntimeError("out of memory")
        self.loaded[name] = directory


@pytest.fixture
def catalogue(tiny_catalogs: Catalogs, tmp_path: Path) -> tuple[str, Path]:
    base, folder = tiny_catalogs["llama"]
    return str(base), Path(shutil.copytree(folder, tmp_path / "catalogue"))


def test_every_active_adapter_is_handed_over(catalogue: tuple[str, Path]) -> None:
    base, folder = catalogue
    target = FakeTarget()
    entries = load_catalogued(load_catalog(folder), base, target)
    assert [entry.name for entry in entries] == ["derm", "cardio"]
    assert target.loaded == {name: folder / "weights" / name for name in ("derm", "cardio")}


def test_other_base_gets_none(catalogue: tuple[str, Path]) -> None:
    target = FakeTarget()
    assert load_catalogued(load_catalog(catalogue[1]), "another", target) == ()
    assert target.loaded == {}


def test_all_problems_of_all_adapters_and_nothing_loaded(catalogue: tuple[str, Path]) -> None:
    base, folder = catalogue
    (folder / "weights/derm/adapter_config.json").unlink()
    (folder / "weights/cardio/adapter_model.safetensors").write_bytes(b"x")
    target = FakeTarget()
    with pytest.raises(AdapterError) as caught:
        load_catalogued(load_catalog(folder), base, target)
    assert len(caught.value.problems) == 2
    text = str(caught.value)
    assert all(part in text for part in ("'derm'", "'cardio'", "git checkout", "state: disabled"))
    assert target.loaded == {}


def test_refusal_of_the_target_names_the_adapter(catalogue: tuple[str, Path]) -> None:
    base, folder = catalogue
    with pytest.raises(AdapterError, match=r"'cardio' .*: out of memory"):
        load_catalogued(load_catalog(folder), base, FakeTarget(refuses="cardio"))
