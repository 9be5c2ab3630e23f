"""A state that hangs (a file server that is gone, a writer that was stopped): nobody waits for it
for ever, it holds no threads that answer questions, and whoever asks is told."""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from adapters.storage import atomic, bounded
from adapters.storage.last_good import LastGood
from adapters.storage.protocol import StorageError
from adapters.store import AdapterStore, open_store
from deployments import adapter_admin, reloader
from deployments.api.access.api_keys import KeyStore, new_key
from deployments.ingress import followed_classifier
from deployments.ingress.followed import follow_catalog, follow_keys
from deployments.ingress.followed_classifier import follow_classifier
from deployments.model import adapter_cache
from deployments.model.adapter_registry import AdapterGone
from deployments.reloader import Reloader
from deployments.settings import parse_settings
from tests.adapters.live_catalogs import add, make_seed, store_of
from tests.deployments.model.test_adapter_manager import Clinic
from tests.deployments.quiet_admin import quiet_admin


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs goes on with the end of the test."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name in (
        (atomic, "LOCK_TIMEOUT_S"),
        (adapter_admin, "STATE_TIMEOUT_S"),
        (reloader, "HANGS_S"),
        (adapter_cache, "READ_TIMEOUT_S"),
        (bounded, "CALL_TIMEOUT_S"),
    ):
        monkeypatch.setattr(where, name, 0.2, raising=False)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("impatient")
def test_a_writer_that_was_stopped_holds_up_nobody_for_ever(tmp_path: Path) -> None:
    store = store_of(make_seed(tmp_path / "seed"), tmp_path / "state")
    add(store, tmp_path, "derm", "2")
    with FileLock(tmp_path / "state" / "catalog.lock"):
        with pytest.raises(StorageError, match=r"has held catalog\.lock for 0\.2 s"):
            add(store, tmp_path, "derm", "3")
        assert store.read().revision == 1
    assert add(store, tmp_path, "derm", "4").revision == 2


@pytest.mark.usefixtures("impatient")
def test_nor_one_of_the_key_file(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    _, record = new_key("user")
    with FileLock(tmp_path / "keys.lock"), pytest.raises(OSError, match=r"has held keys\.lock"):
        store.change(lambda records: [*records, record])
    assert store.change(lambda records: [*records, record]) == (record,)


@pytest.mark.usefixtures("impatient")
def test_a_node_s_copy_of_the_keys_that_is_locked_keeps_no_router_from_following(
    tmp_path: Path,
) -> None:
    store, copy = KeyStore(tmp_path / "state"), KeyStore(tmp_path / "copy")
    followed = follow_keys(store, copy)
    copy.path.parent.mkdir()
    _, record = new_key("user")
    store.change(lambda records: [record])
    with FileLock(tmp_path / "copy" / "keys.lock"):
        assert followed.refresh()
    assert followed.current.ids == {record.id}


def test_a_file_system_without_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(self: FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    store = store_of(make_seed(tmp_path / "seed"), tmp_path / "state")
    with pytest.raises(StorageError, match="offers no locks"):
        add(store, tmp_path, "derm", "2")


@pytest.mark.usefixtures("impatient")
def test_a_look_that_hangs_is_a_problem_and_blocks_no_other_for_ever(
    gate: threading.Event,
) -> None:
    answers = iter(range(100))
    is_hung = False

    def etag() -> int:
        if is_hung:
            gate.wait()
        return next(answers)

    followed = Reloader(etag, lambda: "value", lambda: 0.01)
    followed.start()
    until(followed.refresh)
    assert followed.problem is None
    is_hung = True
    until(lambda: followed.problem)
    assert "has not been answered for" in str(followed.problem)
    started = time.monotonic()
    assert not followed.refresh()
    assert time.monotonic() - started < 2
    is_hung = False
    gate.set()
    until(lambda: followed.problem is None)
    followed.stop()


def test_whatever_a_look_raises_the_next_one_comes() -> None:
    """A library's own kinds of errors too, of which none is an OSError or a ValueError."""
    error: Exception | None = None
    number = 0

    def etag() -> int:
        if error is not None:
            raise error
        return number

    followed = Reloader(etag, lambda: number, lambda: 0.01, explain=lambda error, kept: str(error))
    followed.start()
    for error in (RuntimeError("onnx"), KeyError("head"), MemoryError(), RecursionError()):
        until(lambda: followed.problem is not None)
        error, number = None, number + 1
        until(lambda: followed.problem is None)
        assert followed.current == number
    followed.stop()


@pytest.mark.usefixtures("impatient")
def test_replicas_start_with_what_their_node_knew(
    tmp_path: Path, tiny_router_dir: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that died while the file server is gone is needed more than ever."""
    state, seed, copy = (
        tmp_path / "state",
        make_seed(tmp_path / "seed"),
        KeyStore(tmp_path / "kept"),
    )
    monkeypatch.setattr(followed_classifier, "SHIPPED_ROUTER", tiny_router_dir)
    settings = parse_settings({"state_dir": str(state)})

    def opened() -> AdapterStore:
        return open_store(str(state), seed, tmp_path / "cache", LastGood(tmp_path / "last_good"))

    version = add(opened(), tmp_path, "derm", "2").adapter("derm").stable  # type: ignore[union-attr]
    served = opened()
    assert served.read().revision == 1
    served.folder(version)
    _, record = new_key("user")
    follow_keys(KeyStore(state), copy)
    KeyStore(state).change(lambda records: [record])
    assert follow_keys(KeyStore(state), copy).problem is None
    for name in ("stat", "listdir"):
        monkeypatch.setattr(os, name, _hanging_below(state, getattr(os, name), gate))

    started, store = time.monotonic(), opened()
    assert store.read_or_last_good().revision == 1
    assert store.folder(version).is_relative_to(tmp_path / "last_good")
    catalog = follow_catalog(store, "tiny", lambda: 0.0)
    keys = follow_keys(KeyStore(state), copy)
    router = follow_classifier(settings, lambda: 0.0, store)
    assert (catalog.current.revision, keys.current.ids) == (1, frozenset({record.id}))
    assert router.current.classify([["a rash"]])
    assert all(one.problem for one in (catalog, keys, router))
    assert time.monotonic() - started < 5
    gate.set()
    for one in (catalog, keys, router):
        until(lambda one=one: one.refresh() or one.problem is None)  # type: ignore[misc]


def _hanging_below(folder: Path, call: Callable[..., Any], gate: threading.Event) -> Any:
    def hanging(path: Any = ".", *args: Any, **more: Any) -> Any:
        if isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)):
            gate.wait(30)
        return call(path, *args, **more)

    return hanging


@pytest.mark.usefixtures("impatient")
async def test_the_operator_is_told_and_no_question_waits(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = quiet_admin(tmp_path)
    monkeypatch.setattr(admin._store, "read", gate.wait)
    monkeypatch.setattr(admin._store, "change", lambda *_, **__: gate.wait())
    for _ in range(3):
        calls: list[Any] = [admin.listed() for _ in range(20)]
        calls += [admin.roll_back("derm", None) for _ in range(20)]
        for found in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(found, StorageError)
            assert "has not answered for 0.2 s" in str(found)
    classified = asyncio.to_thread(lambda: "a route")  # the threads of questions
    assert await asyncio.wait_for(classified, 1) == "a route"


@pytest.mark.usefixtures("impatient")
async def test_a_question_for_a_version_that_is_not_known_waits_a_little(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    clinic = Clinic(tmp_path)
    clinic.manager.sync()
    store: Any = clinic.manager._store
    monkeypatch.setattr(store, "etag", gate.wait)

    async def ask() -> None:
        with pytest.raises(AdapterGone):
            async with clinic.manager.leases.leased("new", "7"):
                pass

    started = time.monotonic()
    await asyncio.gather(*(ask() for _ in range(50)))
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "encoded"), 1) == "encoded"
    assert time.monotonic() - started < 3
    async with clinic.manager.leases.leased("a", None) as key:  # one that is known waits for nobody
        assert key.startswith("a@")
    gate.set()
    clinic.close()
