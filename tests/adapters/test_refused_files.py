"""Files that were kept before they were listed, and then refused."""

from pathlib import Path

import pytest

from tests.adapters.live_catalogs import make_seed, store_of, write_bundle


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    return make_seed(tmp_path / "seed")


def test_refused_files_are_taken_back(seed: Path, tmp_path: Path) -> None:
    store = store_of(seed, tmp_path / "state")
    record = write_bundle(tmp_path / "x", "x")
    store.undo_put(record.digest, store.put(record.digest, tmp_path / "x"))
    assert list((tmp_path / "state" / "weights").iterdir()) == []
    store.undo_put(record.digest, "1")  # gone already


@pytest.mark.parametrize("is_first", [True, False])
def test_files_that_another_writer_put_as_well_stay(
    is_first: bool, seed: Path, tmp_path: Path
) -> None:
    """He may be about to list them, or has."""
    store, other = (store_of(seed, tmp_path / "state") for _ in range(2))
    record = write_bundle(tmp_path / "x", "x")
    if is_first:
        token = store.put(record.digest, tmp_path / "x")
        assert token is not None
        assert other.put(record.digest, tmp_path / "x") is None
    else:
        other.put(record.digest, tmp_path / "x")
        token = store.put(record.digest, tmp_path / "x")
        assert token is None
    store.undo_put(record.digest, token)
    assert (tmp_path / "state" / "weights" / record.digest).is_dir()
