"""Which versions are on the device, with a decoder that only notes what it holds."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapters import changes
from adapters.store import AdapterStore
from deployments.model.adapter_cache import AdapterGone, AdapterUnavailable
from deployments.model.adapter_manager import AdapterManager
from deployments.model.host_memory import HostCache
from tests.adapters.live_catalogs import add, make_seed, store_of, write_bundle

NAMES = ("a", "b", "c", "d")


class NotingDecoder:
    """Holds at most `places`, as a bank does; `slow` texts wait to be read, `broken` ones fail."""

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
        assert len(self.held | {name}) <= self._places, "more than the bank has"
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
        self.holder = AdapterManager(
            self.store,
            "tiny",
            self.decoder,
            capacity=capacity,
            host=HostCache(host_bytes),  # each of NotingDecoder's weights counts as one
            clock=lambda: self.now + time.monotonic(),
        )
        self._engine = ThreadPoolExecutor(1)
        self.holder.attach(self.submit)

    def submit(self, errand: Any) -> "Future[Any]":
        return self._engine.submit(errand)

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
    report = clinic.holder.sync()
    assert tiers(report) == {"a": "device", "b": "device", "c": "device", "d": "disk"}
    assert clinic.decoder.texts == {"a@1", "b@1", "c@1"}
    assert clinic.holder.count_by_tier() == {"device": 3, "host": 0, "disk": 1}


def test_the_least_recently_leased_makes_room_and_comes_back_from_memory(
    clinic: Clinic,
) -> None:
    clinic.holder.sync()
    clinic.holder.release(clinic.holder.lease("a", None))
    key = clinic.holder.lease("d", "1")
    assert clinic.decoder.texts == {"a@1", "c@1", "d@1"}
    clinic.holder.release(key)
    num_reads = len(clinic.decoder.reads)
    clinic.holder.release(clinic.holder.lease("b", None))
    assert len(clinic.decoder.reads) == num_reads, "from memory"
    assert clinic.decoder.installs[-1] == ("b-1", False), "and without a second probe"


def test_what_is_not_on_the_device_is_read_ahead_as_far_as_there_is_room(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    clinic.decoder.broken = {"d-1"}
    clinic.holder.sync()
    clinic.holder.prefetch()
    assert clinic.decoder.reads == ["a-1", "b-1", "c-1", "d-1"]
    clinic.holder.prefetch()
    assert clinic.decoder.reads.count("d-1") == 1, "not again and again"
    with pytest.raises(AdapterUnavailable, match="d@1"):
        clinic.holder.lease("d", None)
    clinic.close()
    small = Clinic(tmp_path / "small", host_bytes=3)
    small.holder.sync()
    small.holder.prefetch()
    assert "d-1" not in small.decoder.reads, "it would have pushed out another"
    small.close()
    ample = Clinic(tmp_path / "ample")
    ample.holder.sync()
    ample.holder.prefetch()
    assert tiers(ample.holder.report())["d"] == "host"
    ample.holder.release(ample.holder.lease("d", None))
    assert ample.decoder.reads.count("d-1") == 1
    ample.close()


def test_memory_has_its_limit(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, host_bytes=0)
    clinic.holder.sync()
    clinic.holder.release(clinic.holder.lease("d", None))
    clinic.holder.release(clinic.holder.lease("a", None))
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
    clinic.holder.sync()
    first, second = (clinic.holder.lease("a", None) for _ in range(2))
    add(clinic.writer(), tmp_path, "a", "2")
    report = clinic.holder.sync()
    assert report["leaving"] == [{"name": "a", "version": "1", "running": 2}]
    assert clinic.holder.try_lease("a", "2") is not None
    clinic.holder.release(first)
    clinic.settle()
    assert "a@1" in clinic.decoder.texts
    clinic.holder.release(second)
    clinic.settle()
    assert "a@1" not in clinic.decoder.texts


def test_a_question_for_a_version_that_has_just_gone_is_served_and_later_not(
    clinic: Clinic, tmp_path: Path
) -> None:
    clinic.holder.sync()
    clinic.writer().change(lambda c: changes.remove(c, "a"))
    clinic.holder.sync()
    clinic.settle()
    assert "a@1" not in clinic.decoder.texts
    clinic.holder.release(clinic.holder.lease("a", "1"))
    clinic.settle()
    assert "a@1" not in clinic.decoder.texts, "it stays no longer than the answer"
    with pytest.raises(AdapterGone):
        clinic.holder.lease("a", None)
    clinic.now += 1000
    clinic.holder.sync()
    with pytest.raises(AdapterGone, match="version 1"):
        clinic.holder.lease("a", "1")


def test_a_router_may_know_of_a_version_first(clinic: Clinic, tmp_path: Path) -> None:
    clinic.holder.sync()
    add(clinic.writer(), tmp_path, "a", "2")
    assert clinic.holder.lease("a", "2").startswith("a@2#")


def test_the_same_version_name_with_other_content_is_another_version(
    clinic: Clinic, tmp_path: Path
) -> None:
    clinic.holder.sync()
    old = clinic.holder.lease("a", "1")
    writer = clinic.writer()
    writer.change(lambda c: changes.remove(c, "a"))
    record = write_bundle(tmp_path / "again", "other").model_copy(update={"version": "1"})
    writer.put(record.digest, tmp_path / "again")
    writer.change(
        lambda c: changes.add_version(c, name="a", specialty="a", base_model="tiny", version=record)
    )
    clinic.holder.sync()
    new = clinic.holder.lease("a", "1")
    assert new != old
    assert clinic.decoder.installs[-1] == ("other", True)


def test_a_load_that_fails_is_named_and_tried_again(clinic: Clinic, tmp_path: Path) -> None:
    clinic.holder.sync()
    stamp = clinic.holder.stamp()
    add(clinic.writer(), tmp_path, "a", "2")
    clinic.decoder.broken = {"2"}
    report = clinic.holder.sync()
    assert report["adapters"][0]["error"] == "CUDA out of memory"
    assert clinic.holder.is_behind(clinic.holder.stamp())
    with pytest.raises(AdapterUnavailable, match="RuntimeError"):
        clinic.holder.lease("a", "2")
    clinic.holder.release(clinic.holder.lease("b", None))
    clinic.decoder.broken = set()
    assert clinic.holder.sync()["adapters"][0]["error"] is None
    assert not clinic.holder.is_behind(clinic.holder.stamp())
    assert clinic.holder.is_behind(stamp)


def test_an_error_is_told_until_all_is_well_again(clinic: Clinic) -> None:
    clinic.holder.sync()
    clinic.writer().change(lambda c: changes.update(c, "a", state="disabled"))
    file = clinic.folder / "state" / "catalog.yaml"
    whole = file.read_bytes()
    file.write_bytes(whole.partition(b"num_adapters")[0])
    with pytest.raises(ValueError, match="cut off"):
        clinic.holder.sync()
    assert "cut off" in clinic.holder.report()["last_error"]
    assert clinic.holder.is_behind(clinic.holder.stamp()), "it looks again by itself"
    file.write_bytes(whole)
    report = clinic.holder.sync()
    assert report["last_error"] is None
    assert not clinic.holder.is_behind(clinic.holder.stamp())
    assert "a" not in tiers(report)


def test_a_cold_adapter_delays_only_those_who_ask_for_it(clinic: Clinic) -> None:
    clinic.holder.sync()
    gate = clinic.decoder.slow["d-1"] = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        cold = [pool.submit(clinic.holder.lease, "d", None) for _ in range(3)]
        while "d-1" not in clinic.decoder.reads:
            time.sleep(0.005)
        for _ in range(50):
            warm = clinic.holder.try_lease("a", None)
            assert warm is not None
            clinic.holder.release(warm)
        assert not any(future.done() for future in cold)
        gate.set()
        assert len({future.result(10) for future in cold}) == 1
    assert clinic.decoder.reads.count("d-1") == 1, "read once for all who wait"


def test_when_every_place_is_in_use_the_next_one_waits_for_one(clinic: Clinic) -> None:
    clinic.holder.sync()
    leases = [clinic.holder.lease(name, None) for name in ("a", "b", "c")]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(clinic.holder.lease, "d", None)
        time.sleep(0.1)
        assert not waiting.done()
        clinic.holder.release(leases[0])
        assert waiting.result(10).startswith("d@1#")
    clinic.holder.release(clinic.holder.lease("d", None))


def test_waiting_for_a_place_has_an_end(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.model.adapter_cache.ROOM_TIMEOUT_S", 0.1)
    clinic.holder.sync()
    for name in ("a", "b", "c"):
        clinic.holder.lease(name, None)
    with pytest.raises(AdapterUnavailable, match="all 3 places"):
        clinic.holder.lease("d", None)


def test_nothing_is_left_behind_by_many_threads(clinic: Clinic, tmp_path: Path) -> None:
    """Leases, updates and roll-backs at once: the device never holds more than it has places, and
    in the end what is in service."""
    clinic.holder.sync()
    add(clinic.writer(), tmp_path, "a", "2")
    stop = threading.Event()

    def ask(seed: int) -> int:
        count = 0
        while not stop.is_set():
            name = NAMES[(seed + count) % 4]
            clinic.holder.release(clinic.holder.lease(name, None))
            count += 1
        return count

    writer = clinic.writer()
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, seed) for seed in range(2)]
        for cycle in range(30):
            version = "1" if cycle % 2 else "2"
            writer.change(lambda c, v=version: changes.update(c, "a", version=v))  # type: ignore[misc]
            clinic.holder.sync()
        stop.set()
        assert all(future.result(10) > 5 for future in asking)
    clinic.holder.sync()
    clinic.settle()
    report = clinic.holder.report()
    assert report["leaving"] == []
    assert len(clinic.decoder.held) == 3
    assert {a["version"] for a in report["adapters"] if a["name"] == "a"} == {"1"}


def test_only_answers_are_counted(clinic: Clinic) -> None:
    clinic.holder.sync()
    for _ in range(2):
        clinic.holder.release(clinic.holder.lease("a", None))
    warm = clinic.holder.try_lease("a", None)
    assert warm is not None
    answers = {a["name"]: a["answers"] for a in clinic.holder.report()["adapters"]}
    assert answers == {"a": 3, "b": 0, "c": 0, "d": 0}
