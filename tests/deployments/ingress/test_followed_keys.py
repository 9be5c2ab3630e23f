"""Keys that come and go count within 2 s; a file that breaks changes nothing."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.api.access.api_keys import KeyRecord, KeyStore, KeyTable, new_key, now
from deployments.ingress.followed import KEYS_PERIOD_S, follow_keys
from deployments.reloader import Reloader


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path)


@pytest.fixture
def watch(store: KeyStore) -> Iterator[Reloader[KeyTable]]:
    watch = follow_keys(store)
    watch.start()
    yield watch
    watch.stop()
    watch._thread.join(timeout=5)
    assert not watch._thread.is_alive()


def add(store: KeyStore) -> tuple[str, KeyRecord]:
    key, record = new_key("user")
    store.change(lambda records: [*records, record])
    return key, record


def seconds_until(condition: object) -> float:
    started = time.monotonic()
    while not condition():  # type: ignore[operator]
        assert time.monotonic() - started < 10
        time.sleep(0.01)
    return time.monotonic() - started


def test_a_new_and_a_revoked_key_count_within_two_seconds(
    store: KeyStore, watch: Reloader[KeyTable]
) -> None:
    assert KEYS_PERIOD_S <= 1
    key, record = add(store)
    assert seconds_until(lambda: watch.current.find(key)) < 2
    ended = record.model_copy(update={"revoked": now()})
    store.change(lambda records: [ended])
    assert seconds_until(lambda: watch.current.find(key) is None) < 2


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "keys": [', b"\xff", b"[]", None])
def test_a_file_that_breaks_or_goes_leaves_the_last_good_keys(
    store: KeyStore, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    key, record = add(store)
    watch = follow_keys(store)
    if content is None:
        store.path.unlink()
    else:
        store.path.write_bytes(content)
    for _ in range(3):
        watch.refresh()
    assert watch.current.find(key) == record
    assert watch.problem is not None
    assert "1 keys from before stay in force" in watch.problem
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 1  # said once, not twice a second
    store.path.unlink(missing_ok=True)
    other, _ = add(store)
    watch.refresh()
    assert watch.problem is None
    assert watch.current.find(other)
    assert watch.current.find(key) is None
    assert record.sha256 not in caplog.text


def test_a_file_that_is_bad_at_the_start_lets_nobody_in(store: KeyStore) -> None:
    store.path.write_text("{")
    watch = follow_keys(store)
    assert len(watch.current) == 0
    assert "cut off" in str(watch.problem)


def test_no_file_is_no_problem(store: KeyStore) -> None:
    watch = follow_keys(store)
    assert (len(watch.current), watch.problem) == (0, None)


def test_an_unreadable_folder_does_not_show_its_path(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(self: KeyStore) -> None:
        raise OSError(116, "Stale file handle", str(self.path))

    monkeypatch.setattr(KeyStore, "etag", stale)
    watch = follow_keys(store)
    assert watch.problem is not None
    assert str(store.path.parent) not in watch.problem


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "keys": [', None])
def test_a_router_that_starts_without_a_good_file_knows_its_nodes_keys(
    store: KeyStore, tmp_path: Path, content: bytes | None
) -> None:
    kept = KeyStore(tmp_path / "node")
    key, record = add(store)
    assert follow_keys(store, kept).current.find(key)
    assert kept.path.stat().st_mode & 0o777 == 0o600
    if content is None:
        store.path.unlink()
    else:
        store.path.write_bytes(content)
    restarted = follow_keys(store, kept)
    assert restarted.current.find(key) == record
    assert restarted.problem is not None
    assert "1 keys from before stay in force" in restarted.problem
    store.replace((record.model_copy(update={"revoked": now()}),))
    assert restarted.refresh()
    assert restarted.current.find(key) is None
    assert follow_keys(KeyStore(tmp_path / "nothing"), kept).current.find(key) is None, "revoked"


def test_without_a_file_and_a_copy_there_is_no_problem(tmp_path: Path) -> None:
    fresh = follow_keys(KeyStore(tmp_path / "state"), KeyStore(tmp_path / "node"))
    assert (len(fresh.current), fresh.problem) == (0, None)


def test_another_file_in_place_of_the_keys_changes_nothing_until_it_is_meant(
    store: KeyStore, tmp_path: Path
) -> None:
    """As one that is made while the folder is not mounted: everybody would be turned away."""
    kept = KeyStore(tmp_path / "node")
    old, _ = add(store)
    watch = follow_keys(store, kept)
    store.path.unlink()
    new, _ = add(store)
    for router in (watch, follow_keys(store, kept)):  # one that ran before, one that starts then
        assert not router.refresh()
        assert router.current.find(old)
        assert router.current.find(new) is None
        assert router.problem is not None
        assert router.problem.startswith("keys.json: has none of the keys from before: put the old")
        assert str(kept.path) in router.problem
    kept.path.unlink()
    assert watch.refresh()
    assert watch.current.find(new)
    assert watch.current.find(old) is None
