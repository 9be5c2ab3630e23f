"""Which versions are on the device, with a decoder that only notes what it holds."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapters import changes
from adapters.store import AdapterStore
from adapters.versions import AdapterVersion
from deployments.model.adapter_manager import AdapterManager
from deployments.model.adapter_registry import AdapterGone, AdapterUnavailable
from deployments.model.weights_reader import HostCache
from tests.adapters.live_catalogs import add, make_seed, store_of, write_bundle

NAMES = ("a", "b", "c", "d")


class NotingDecoder:
    """Holds at most `places`, as the pool does; `slow` texts wait, `broken` ones fail."""

    def __init__(self, places: int) -> None:
        self.held: set[str] = set()
        self.installs: list[tuple[str, bool]] = []
        self.reads: list[str] = []
        self.slow: dict[str, threading.Event] = {}
        self.broken: set[str] = set()
        self._places = places

    def num_host_bytes(self, weights: str) -> int:
        return 1

    def read_adapter(self, directory: Path) -> str:
        text = (directory / "adapter_model.safetensors").read_text()
        self.reads.append(text)
        if text in self.slow:
            assert self.slow[text].wait(10)
        if text in self.broken:
            raise RuntimeError("CUDA out of memory")
        return text

    def install(self, name: str, weights: str, *, probe: bool = True) -> None:
        assert len(self.held | {name}) <= self._places, "more than the pool has"
        self.held.add(name)
        self.installs.append((weights, probe))

    def dry_run(self, name: str, weights: str) -> None:
        assert len(self.held) < self._places

    def evict(self, name: str) -> None:
        self.held.remove(name)

    @property
    def texts(self) -> set[str]:
        return {name.partition("#")[0] for name in self.held}


class Clinic:
    def __init__(self, folder: Path, *, capacity: int = 3, host_bytes: int = 10_000) -> None:
        self.folder = folder
        self.seed = make_seed(folder / "seed", names=NAMES)
        self.store = store_of(self.seed, folder / "state")
        self.decoder = NotingDecoder(capacity + 1)
        self.now = 0.0
        self._engine = ThreadPoolExecutor(1)
        self.manager = AdapterManager(
            self.store,
            "tiny",
            self.decoder,
            capacity=capacity,
            host=HostCache(host_bytes),  # each of NotingDecoder's weights counts as one
            run=self._engine.submit,
            clock=lambda: self.now + time.monotonic(),
        )

    def lease(self, name: str, version: str | None) -> str:
        return self.manager.leases.lease(name, version).result(10)

    def settle(self) -> None:
        self._engine.submit(lambda: None).result()

    def writer(self) -> AdapterStore:
        return store_of(self.seed, self.folder / "state")

    def close(self) -> None:
        self._engine.shutdown()


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Clinic]:
    clinic = Clinic(tmp_path)
    yield clinic
    clinic.close()


def tiers(report: dict[str, Any]) -> dict[str, str]:
    return {a["name"]: a["tier"] for a in report["adapters"]}


def test_the_first_look_fills_the_device_and_no_more(clinic: Clinic) -> None:
    report = clinic.manager.sync()
    assert tiers(report) == {"a": "device", "b": "device", "c": "device", "d": "disk"}
    assert clinic.decoder.texts == {"a@1", "b@1", "c@1"}
    tiers_now, loads = clinic.manager.measure()
    assert tiers_now == {"device": 3, "host": 0, "disk": 1}
    assert [name for name, _ in loads] == ["a", "b", "c"]
    assert clinic.manager.measure()[1] == []


def test_the_least_recently_leased_makes_room_and_comes_back_from_memory(
    clinic: Clinic,
) -> None:
    clinic.manager.sync()
    clinic.manager.leases.release(clinic.lease("a", None))
    key = clinic.lease("d", "1")
    assert clinic.decoder.texts == {"a@1", "c@1", "d@1"}
    clinic.manager.leases.release(key)
    num_reads = len(clinic.decoder.reads)
    clinic.manager.leases.release(clinic.lease("b", None))
    assert len(clinic.decoder.reads) == num_reads, "from memory"
    assert clinic.decoder.installs[-1] == ("b-1", False), "and without a second probe"


def test_what_is_not_on_the_device_is_read_ahead_as_far_as_there_is_room(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    clinic.decoder.broken = {"d-1"}
    clinic.manager.sync()
    clinic.manager.prefetch()
    assert clinic.decoder.reads == ["a-1", "b-1", "c-1", "d-1"]
    clinic.manager.prefetch()
    assert clinic.decoder.reads.count("d-1") == 1, "not again and again"
    with pytest.raises(AdapterUnavailable, match="d@1"):
        clinic.lease("d", None)
    clinic.close()
    small = Clinic(tmp_path / "small", host_bytes=3)
    small.manager.sync()
    small.manager.prefetch()
    assert "d-1" not in small.decoder.reads, "it would have pushed out another"
    small.close()
    ample = Clinic(tmp_path / "ample")
    ample.manager.sync()
    ample.manager.prefetch()
    assert tiers(ample.manager.report())["d"] == "host"
    ample.manager.leases.release(ample.lease("d", None))
    assert ample.decoder.reads.count("d-1") == 1
    ample.close()


def test_memory_has_its_limit(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, host_bytes=0)
    clinic.manager.sync()
    clinic.manager.leases.release(clinic.lease("d", None))
    clinic.manager.leases.release(clinic.lease("a", None))
    assert clinic.decoder.reads.count("a-1") == 2
    memory = HostCache(10)
    for digest, size in (("x", 6), ("y", 4), ("x", 6), ("z", 3)):
        memory.put(digest, digest.upper(), size)
    assert ("x" in memory, "y" in memory, "z" in memory) == (False, True, True)
    assert memory.num_bytes == 7
    clinic.close()


def test_a_leased_version_outlives_its_update_and_leaves_with_the_last_answer(
    clinic: Clinic, tmp_path: Path
) -> None:
    clinic.manager.sync()
    first, second = (clinic.lease("a", None) for _ in range(2))
    add(clinic.writer(), tmp_path, "a", "2")
    report = clinic.manager.sync()
    assert report["leaving"] == [{"name": "a", "version": "1", "running": 2}]
    assert clinic.manager.leases.lease("a", "2").done()
    clinic.manager.leases.release(first)
    clinic.settle()
    assert "a@1" in clinic.decoder.texts
    clinic.manager.leases.release(second)
    clinic.settle()
    assert "a@1" not in clinic.decoder.texts


def test_a_question_for_a_version_that_has_just_gone_is_served_and_later_not(
    clinic: Clinic, tmp_path: Path
) -> None:
    clinic.manager.sync()
    clinic.writer().change(lambda c: changes.remove(c, "a"))
    clinic.manager.sync()
    clinic.settle()
    assert "a@1" not in clinic.decoder.texts
    clinic.manager.leases.release(clinic.lease("a", "1"))
    clinic.settle()
    assert "a@1" not in clinic.decoder.texts, "it stays no longer than the answer"
    with pytest.raises(AdapterGone):
        clinic.lease("a", None)
    clinic.now += 1000
    clinic.manager.sync()
    with pytest.raises(AdapterGone, match="version 1"):
        clinic.lease("a", "1")


async def test_a_router_may_know_of_a_version_first(clinic: Clinic, tmp_path: Path) -> None:
    clinic.manager.sync()
    add(clinic.writer(), tmp_path, "a", "2")
    async with clinic.manager.leases.leased("a", "2") as key:
        assert key.startswith("a@2#")


def test_the_same_version_name_with_other_content_is_another_version(
    clinic: Clinic, tmp_path: Path
) -> None:
    clinic.manager.sync()
    old = clinic.lease("a", "1")
    writer = clinic.writer()
    writer.change(lambda c: changes.remove(c, "a"))
    record = write_bundle(tmp_path / "again", "other").model_copy(update={"version": "1"})
    writer.put(record.digest, tmp_path / "again")
    writer.change(
        lambda c: changes.add_version(c, name="a", specialty="a", base_model="tiny", version=record)
    )
    clinic.manager.sync()
    new = clinic.lease("a", "1")
    assert new != old
    assert clinic.decoder.installs[-1] == ("other", True)


def test_a_load_that_fails_is_named_and_tried_again(clinic: Clinic, tmp_path: Path) -> None:
    clinic.manager.sync()
    assert not clinic.manager.is_behind()
    add(clinic.writer(), tmp_path, "a", "2")
    clinic.decoder.broken = {"2"}
    report = clinic.manager.sync()
    assert report["adapters"][0]["error"] == "CUDA out of memory"
    assert clinic.manager.is_behind()
    with pytest.raises(AdapterUnavailable, match="RuntimeError"):
        clinic.lease("a", "2")
    clinic.manager.leases.release(clinic.lease("b", None))
    clinic.decoder.broken = set()
    assert clinic.manager.sync()["adapters"][0]["error"] is None
    assert not clinic.manager.is_behind()
    clinic.writer().change(lambda c: changes.update(c, "b", pinned=True))
    assert clinic.manager.is_behind()


def test_an_error_is_told_until_all_is_well_again(clinic: Clinic) -> None:
    clinic.manager.sync()
    clinic.writer().change(lambda c: changes.update(c, "a", state="disabled"))
    file = clinic.folder / "state" / "catalog.yaml"
    whole = file.read_bytes()
    file.write_bytes(whole.partition(b"num_adapters")[0])
    with pytest.raises(ValueError, match="cut off"):
        clinic.manager.sync()
    assert "cut off" in clinic.manager.report()["last_error"]
    assert clinic.manager.is_behind(), "it looks again by itself"
    file.write_bytes(whole)
    report = clinic.manager.sync()
    assert report["last_error"] is None
    assert not clinic.manager.is_behind()
    assert "a" not in tiers(report)


def test_only_answers_are_counted(clinic: Clinic) -> None:
    clinic.manager.sync()
    for _ in range(2):
        clinic.manager.leases.release(clinic.lease("a", None))
    assert clinic.manager.leases.lease("a", None).done()
    answers = {a["name"]: a["answers"] for a in clinic.manager.report()["adapters"]}
    assert answers == {"a": 3, "b": 0, "c": 0, "d": 0}


def test_an_error_without_a_text_is_an_error(clinic: Clinic, monkeypatch: Any) -> None:
    """A timeout's text is empty: its name is told, and the load is tried again."""
    clinic.manager.sync()

    def late(name: str, weights: str, *, probe: bool = True) -> None:
        raise TimeoutError

    monkeypatch.setattr(clinic.decoder, "install", late)
    with pytest.raises(AdapterUnavailable, match="TimeoutError"):
        clinic.lease("d", None)
    report = clinic.manager.report()
    assert [a["error"] for a in report["adapters"]] == [None, None, None, "TimeoutError"]
    assert clinic.manager.is_behind()


def test_a_report_has_no_effect(clinic: Clinic, tmp_path: Path) -> None:
    """It reads no catalogue and tries no failed load again."""
    clinic.manager.sync()
    clinic.decoder.broken = {"d-1"}
    with pytest.raises(AdapterUnavailable):
        clinic.lease("d", None)
    add(clinic.writer(), tmp_path, "a", "2")
    num_reads = len(clinic.decoder.reads)
    for _ in range(3):
        report = clinic.manager.report()
    assert (report["revision"], len(clinic.decoder.reads)) == (0, num_reads)
    assert report["adapters"][3]["error"] == "CUDA out of memory"


def test_checksums_that_were_compared_are_not_compared_again(clinic: Clinic) -> None:
    compared: list[str] = []

    class Watched(AdapterStore):
        def folder(self, version: AdapterVersion) -> Path:
            compared.append(version.digest)
            return super().folder(version)

    store = store_of(clinic.seed, clinic.folder / "state")
    store.__class__ = Watched
    verified = {
        adapter.stable.digest: store.folder(adapter.stable) for adapter in store.read().adapters
    }
    compared.clear()
    manager = AdapterManager(
        store,
        "tiny",
        NotingDecoder(4),
        capacity=4,
        host=HostCache(0),
        run=ThreadPoolExecutor(1).submit,
        verified=verified,
    )
    manager.sync()
    assert compared == []
    assert set(tiers(manager.report()).values()) == {"device"}


def test_what_a_question_loads_during_a_sync_is_not_loaded_again(clinic: Clinic) -> None:
    clinic.manager.sync()
    key = clinic.lease("d", None)
    num_installs = len(clinic.decoder.installs)
    clinic.manager._cache.load(key)
    assert len(clinic.decoder.installs) == num_installs


def test_a_state_that_cannot_be_looked_at_is_in_the_report(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the change that was broadcast is not taken for confirmed."""
    clinic.manager.sync()

    def unreachable() -> str:
        raise OSError("the bucket cannot be reached")

    monkeypatch.setattr(clinic.store, "etag", unreachable)
    assert clinic.manager.try_sync()["error"] == "the bucket cannot be reached"
    monkeypatch.undo()
    assert clinic.manager.try_sync()["error"] is None
