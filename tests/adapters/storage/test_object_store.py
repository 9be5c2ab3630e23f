"""The live catalogue in an object store with conditional put, on fsspec's memory file system."""

from pathlib import Path

import pytest

from adapters import changes
from adapters.catalog import Catalog
from adapters.storage.last_good import LastGood
from adapters.storage.object_store import ObjectStorage
from adapters.storage.protocol import StorageError
from adapters.store import open_store
from tests.adapters.live_catalogs import add, make_seed


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    return make_seed(tmp_path / "seed")


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}"


def test_an_object_store_keeps_the_catalogue_and_the_files(
    seed: Path, bucket: str, tmp_path: Path
) -> None:
    writer, reader = (open_store(bucket, seed, tmp_path / f"cache{i}") for i in range(2))
    assert reader.read().revision == 0
    after = add(writer, tmp_path, "derm", "2")
    assert reader.read() == after
    derm = after.adapter("derm")
    assert derm is not None
    folder = reader.folder(derm.stable)
    assert folder.parent == tmp_path / "cache1"
    assert (folder / "adapter_model.safetensors").read_bytes() == b"2"


@pytest.mark.parametrize("content", [b"", b"half", None], ids=["empty", "other", "missing"])
def test_a_damaged_copy_in_the_cache_is_fetched_again(
    seed: Path, bucket: str, tmp_path: Path, content: bytes | None
) -> None:
    """A machine that loses power may leave files of the right names without their content."""
    store = open_store(bucket, seed, tmp_path / "cache", last_good=LastGood(tmp_path / "last_good"))
    derm = add(store, tmp_path, "derm", "2").adapter("derm")
    assert derm is not None
    weights = store.folder(derm.stable) / "adapter_model.safetensors"
    if content is None:
        weights.unlink()
    else:
        with open(weights, "r+b") as file:  # the copy of last_good has the same inode
            file.truncate()
            file.write(content)
    kept = tmp_path / "last_good" / "weights" / derm.stable.digest / weights.name
    assert (store.folder(derm.stable) / weights.name).read_bytes() == b"2"
    assert kept.read_bytes() == b"2"


def test_what_has_just_left_the_catalogue_stays_for_a_day(
    seed: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket, seed, tmp_path / "cache")
    version = add(store, tmp_path, "derm", "2").adapter("derm").stable  # type: ignore[union-attr]
    modified = store._files._fs.modified  # type: ignore[attr-defined]
    put_at = modified(f"{store._files._root}/weights/{version.digest}/adapter_config.json")  # type: ignore[attr-defined]
    store.change(lambda c: changes.remove(c, "derm"))
    spared_at = modified(f"{store._files._root}/weights/{version.digest}/adapter_config.json")  # type: ignore[attr-defined]
    assert spared_at > put_at
    assert open_store(bucket, seed, tmp_path / "other").folder(version).is_dir()


def test_of_two_writers_to_an_object_store_one_begins_again(
    seed: Path, bucket: str, tmp_path: Path
) -> None:
    one, two = (open_store(bucket, seed, tmp_path / "cache") for _ in range(2))
    tries = []

    def slow(catalog: Catalog) -> Catalog:
        tries.append(catalog.revision)
        if len(tries) == 1:
            two.change(lambda c: changes.update(c, "cardio", state="disabled"))
        return changes.update(catalog, "derm", state="disabled")

    one.change(slow)
    assert tries == [0, 1]
    assert [a.state for a in one.read().adapters] == ["disabled", "disabled"]


def test_a_store_without_conditional_put_is_refused_for_writing(
    seed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"memory://{tmp_path.name}", seed, tmp_path / "cache")
    monkeypatch.setattr("adapters.storage.object_store.CONDITIONAL", frozenset({"s3"}))
    with pytest.raises(StorageError, match="offers no conditional put"):
        store.change(lambda c: changes.remove(c, "derm"))
    assert store.read().revision == 0


def test_a_writer_that_stalled_begins_again(tmp_path: Path) -> None:
    """Its number may have been used and swept meanwhile."""
    now = [1000.0]
    files = ObjectStorage(f"memory://{tmp_path.name}", clock=lambda: now[0])
    files.put_if_match(b"one", None)
    found = files.read()
    assert found is not None
    now[0] += 3600
    from adapters.storage.protocol import PreconditionFailed

    with pytest.raises(PreconditionFailed):
        files.put_if_match(b"two", found[1])
    assert files.read() == found


def test_an_unknown_kind_of_store_names_what_to_install(seed: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="install the driver"):
        open_store("gs://bucket/x", seed, tmp_path)
