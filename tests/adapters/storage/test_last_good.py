"""A state that was live and vanishes is an error; a node starts with what it served last."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from adapters import changes
from adapters.catalog import CatalogError
from adapters.storage.last_good import LastGood
from adapters.storage.local import LocalStorage
from adapters.storage.object_store import ObjectStorage
from adapters.storage.protocol import StorageError
from adapters.store import AdapterStore, DamagedAdapter
from tests.adapters.live_catalogs import add, make_seed, store_of


def store(tmp_path: Path, *, node: str = "node") -> AdapterStore:
    """As a new process on a node opens it."""
    files = LocalStorage(tmp_path / "state")
    copy = LastGood(tmp_path / node)
    return AdapterStore(files, tmp_path / "seed", tmp_path / "cache", copy)


@pytest.fixture
def live(tmp_path: Path) -> AdapterStore:
    """At revision 2: derm 2 serves, and its files were loaded on this node."""
    make_seed(tmp_path / "seed")
    opened = store(tmp_path)
    add(opened, tmp_path, "derm", "2", activation="active")
    opened.change(lambda c: changes.remove(c, "cardio"))
    derm = opened.read().adapter("derm")
    assert derm is not None
    assert derm.version == "2"
    opened.folder(derm.stable)
    return opened


def vanish(state: Path) -> None:
    shutil.rmtree(state)


def empty(state: Path) -> None:
    """The folder of a file system that is not mounted."""
    vanish(state)
    state.mkdir()


def cut(state: Path) -> None:
    file = state / "catalog.yaml"
    file.write_bytes(file.read_bytes()[:40])


def blank(state: Path) -> None:
    (state / "catalog.yaml").write_bytes(b"")


def not_a_file(state: Path) -> None:
    (state / "catalog.yaml").unlink()
    (state / "catalog.yaml").mkdir()


def not_a_folder(state: Path) -> None:
    vanish(state)
    state.write_bytes(b"")


LOSSES: list[Any] = [vanish, empty, cut, blank, not_a_file, not_a_folder]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_live_state_that_is_lost_is_an_error_never_the_seed(
    live: AdapterStore, tmp_path: Path, lose: Any
) -> None:
    lose(tmp_path / "state")
    for opened in (live, store(tmp_path)):
        with pytest.raises((StorageError, CatalogError)):
            opened.read()
        with pytest.raises((StorageError, CatalogError)):
            opened.change(lambda c: c)
        assert opened.read_or_last_good().revision == 2
    if lose is not not_a_folder:
        assert not (tmp_path / "state" / "weights").is_dir() or lose not in (vanish, empty)


@pytest.mark.parametrize("lose", LOSSES)
def test_a_new_process_of_this_node_serves_the_versions_it_had(
    live: AdapterStore, tmp_path: Path, lose: Any
) -> None:
    lose(tmp_path / "state")
    opened = store(tmp_path)
    derm = opened.read_or_last_good().adapter("derm")
    assert derm is not None
    assert derm.version == "2"
    assert (opened.folder(derm.stable) / "adapter_model.safetensors").read_text() == "2"


def test_the_error_says_what_was_served_and_how_to_begin_again(
    live: AdapterStore, tmp_path: Path
) -> None:
    vanish(tmp_path / "state")
    with pytest.raises(StorageError, match=f"revision 2 was served.*remove {tmp_path}/node"):
        store(tmp_path).read()
    shutil.rmtree(tmp_path / "node")
    assert store(tmp_path).read().revision == 0
    with pytest.raises(StorageError, match="revision 2 was served"):
        live.read()  # this process has seen it


def test_a_state_that_comes_back_is_read_again(live: AdapterStore, tmp_path: Path) -> None:
    (tmp_path / "state").rename(tmp_path / "away")
    opened = store(tmp_path)
    assert opened.read_or_last_good().revision == 2
    (tmp_path / "away").rename(tmp_path / "state")
    opened.change(lambda c: changes.remove(c, "derm"))
    assert opened.read().revision == live.read().revision == 3


def test_a_node_without_a_copy_says_that_it_cannot_start(
    live: AdapterStore, tmp_path: Path
) -> None:
    cut(tmp_path / "state")
    with pytest.raises(CatalogError):
        store(tmp_path, node="another").read_or_last_good()


def test_a_damaged_copy_is_no_copy(
    live: AdapterStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut(tmp_path / "node")
    assert store(tmp_path).read_or_last_good().revision == 2, "the state is there"
    vanish(tmp_path / "state")
    cut(tmp_path / "node")
    assert store(tmp_path).read_or_last_good().revision == 0
    assert "this node's copy of the catalogue cannot be used" in caplog.text


def test_kept_files_are_checked_as_any_others(live: AdapterStore, tmp_path: Path) -> None:
    derm = live.read().adapter("derm")
    assert derm is not None
    kept = tmp_path / "node" / "weights" / derm.stable.digest / "adapter_model.safetensors"
    length = kept.stat().st_size
    kept.unlink()
    kept.write_text("x" * length)
    assert live.folder(derm.stable).is_relative_to(tmp_path / "state")
    vanish(tmp_path / "state")
    with pytest.raises(DamagedAdapter):
        live.folder(derm.stable)


def test_what_no_version_lists_any_more_is_not_kept(live: AdapterStore, tmp_path: Path) -> None:
    assert len(list((tmp_path / "node" / "weights").iterdir())) == 1
    live.change(lambda c: changes.remove(c, "derm"))
    live.read()
    assert list((tmp_path / "node" / "weights").iterdir()) == []


def test_a_copy_that_cannot_be_written_is_logged_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_seed(tmp_path / "seed")
    (tmp_path / "node").write_bytes(b"")
    opened = store(tmp_path)
    for number in range(3):
        add(opened, tmp_path, "derm", f"{number + 2}", activation="active")
        assert opened.read().revision == number + 1
    assert caplog.text.count("no copy for the time the state is away") == 1


def test_an_object_store_that_is_emptied(tmp_path: Path) -> None:
    make_seed(tmp_path / "seed")
    files = ObjectStorage(f"memory://{tmp_path.name}")
    opened = AdapterStore(files, tmp_path / "seed", tmp_path / "cache", LastGood(tmp_path / "n"))
    opened.change(lambda c: changes.remove(c, "cardio"))
    assert opened.read().revision == 1
    files._fs.rm(files._root, recursive=True)
    with pytest.raises(StorageError, match="revision 1 was served"):
        opened.read()
    assert opened.read_or_last_good().revision == 1


def test_a_state_that_was_never_changed_is_the_seed(tmp_path: Path) -> None:
    make_seed(tmp_path / "seed")
    opened = store(tmp_path)
    assert opened.read().revision == opened.read().revision == 0
    assert not (tmp_path / "node").exists()
    assert store_of(tmp_path / "seed", tmp_path / "state").read().revision == 0
