"""Who waits for an adapter that is not on the device, and whom that delays."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters import changes
from deployments.model.adapter_registry import AdapterUnavailable
from tests.adapters.live_catalogs import add, write_bundle
from tests.deployments.model.test_adapter_manager import NAMES, Clinic


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Clinic]:
    clinic = Clinic(tmp_path)
    yield clinic
    clinic.close()


def test_a_cold_adapter_delays_only_those_who_ask_for_it(clinic: Clinic) -> None:
    clinic.manager.sync()
    gate = clinic.decoder.slow["d-1"] = threading.Event()
    cold = [clinic.manager.leases.lease("d", None) for _ in range(3)]
    while "d-1" not in clinic.decoder.reads:
        time.sleep(0.005)
    for _ in range(50):
        warm = clinic.manager.leases.lease("a", None)
        assert warm.done()
        clinic.manager.leases.release(warm.result())
    assert not any(future.done() for future in cold)
    gate.set()
    assert len({future.result(10) for future in cold}) == 1
    assert clinic.decoder.reads.count("d-1") == 1, "read once for all who wait"


def test_when_every_place_is_in_use_the_next_one_waits_for_one(clinic: Clinic) -> None:
    clinic.manager.sync()
    leases = [clinic.lease(name, None) for name in ("a", "b", "c")]
    waiting = clinic.manager.leases.lease("d", None)
    time.sleep(0.1)
    assert not waiting.done()
    clinic.manager.leases.release(leases[0])
    assert waiting.result(10).startswith("d@1#")
    clinic.manager.leases.release(clinic.lease("d", None))


def test_waiting_for_a_place_has_an_end(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.model.adapter_loads.ROOM_TIMEOUT_S", 0.1)
    clinic.manager.sync()
    for name in ("a", "b", "c"):
        clinic.lease(name, None)
    with pytest.raises(AdapterUnavailable, match="all 3 places"):
        clinic.lease("d", None)


def test_nothing_is_left_behind_by_many_threads(clinic: Clinic, tmp_path: Path) -> None:
    """Leases, updates and roll-backs at once: the device never holds more than it has places, and
    in the end what is in service."""
    clinic.manager.sync()
    add(clinic.writer(), tmp_path, "a", "2")
    stop = threading.Event()

    def ask(seed: int) -> int:
        count = 0
        while not stop.is_set():
            name = NAMES[(seed + count) % 4]
            clinic.manager.leases.release(clinic.lease(name, None))
            count += 1
        return count

    writer = clinic.writer()
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, seed) for seed in range(2)]
        for cycle in range(30):
            version = "1" if cycle % 2 else "2"
            writer.change(lambda c, v=version: changes.update(c, "a", version=v))  # type: ignore[misc]
            clinic.manager.sync()
        stop.set()
        assert all(future.result(10) > 5 for future in asking)
    clinic.manager.sync()
    clinic.settle()
    report = clinic.manager.report()
    assert report["leaving"] == []
    assert len(clinic.decoder.held) == 3
    assert {a["version"] for a in report["adapters"] if a["name"] == "a"} == {"1"}


def test_slow_cold_adapters_delay_no_other_cold_one(tmp_path: Path) -> None:
    """Whether they are one adapter or several: the other takes only the time of its own load."""
    clinic = Clinic(tmp_path, capacity=4)
    clinic.manager.sync()
    names = [f"slow{number}" for number in range(6)]
    for name in (*names, "other"):
        record = write_bundle(tmp_path / name, name)
        clinic.writer().put(record.digest, tmp_path / name)
        clinic.writer().change(
            lambda c, name=name, record=record: changes.add_version(  # type: ignore[misc]
                c, name=name, specialty=name, base_model="tiny", version=record
            )
        )
    gate = threading.Event()
    clinic.decoder.slow = dict.fromkeys(names, gate)
    clinic.manager._read_catalog()
    waiting = [clinic.manager.leases.lease(name, None) for name in names for _ in range(4)]
    started = time.monotonic()
    clinic.manager.leases.release(clinic.manager.leases.lease("other", None).result(10))
    assert time.monotonic() - started < 1
    assert not any(lease.done() for lease in waiting)
    for lease in waiting[4:]:
        assert lease.cancel(), "a client that left"
    gate.set()
    assert len({lease.result(10) for lease in waiting[:4]}) == 1
    assert clinic.decoder.reads.count("slow0") == 1
    for name in names:  # the others load too, though nobody waits for them any more
        clinic.manager.leases.release(clinic.lease(name, None))
    clinic.close()


async def test_a_client_that_leaves_leaves_no_lease_behind(clinic: Clinic) -> None:
    """At whatever moment: while the adapter is read, or when it has just arrived."""
    clinic.manager.sync()
    gate = clinic.decoder.slow["d-1"] = threading.Event()

    async def ask() -> None:
        async with clinic.manager.leases.leased("d", None):
            await asyncio.sleep(60)

    asking = [asyncio.create_task(ask()) for _ in range(8)]
    await asyncio.sleep(0.05)
    for task in asking[:4]:
        task.cancel()
    gate.set()
    while "d@1" not in clinic.decoder.texts:
        time.sleep(0.001)  # the loop sleeps: the results wait in its queue
    time.sleep(0.05)
    for task in asking[4:]:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert clinic.manager._cache.slots.num_leases(clinic.lease("d", None)) == 1, "only this one"
