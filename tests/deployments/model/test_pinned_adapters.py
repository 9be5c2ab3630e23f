"""Pinned adapters on one replica: they get a place, and keep it whatever else is asked for."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

from adapters import changes
from deployments.model.adapter_registry import AdapterUnavailable
from tests.adapters.live_catalogs import add
from tests.deployments.model.test_adapter_manager import Clinic, tiers


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Clinic]:
    clinic = Clinic(tmp_path)
    yield clinic
    clinic.close()


def pin(clinic: Clinic, name: str, *, pinned: bool = True) -> None:
    clinic.writer().change(lambda c: changes.update(c, name, pinned=pinned))


def storm(clinic: Clinic, names: Sequence[str], num: int = 300) -> Counter[str]:
    """Leases by a Zipf law (s = 1), one after another; how often each one was not on the device."""
    random = Random(7)
    shares = [1 / rank for rank in range(1, len(names) + 1)]
    cold: Counter[str] = Counter()
    for name in random.choices(names, shares, k=num):
        lease = clinic.manager.leases.lease(name, None)
        cold[name] += not lease.done()
        clinic.manager.leases.release(lease.result(10))
    return cold


def test_a_pinned_version_takes_a_place_on_a_full_device(clinic: Clinic) -> None:
    clinic.manager.sync()
    pin(clinic, "d")
    report = clinic.manager.sync()
    assert tiers(report) == {"a": "host", "b": "device", "c": "device", "d": "device"}
    assert [a["pinned"] for a in report["adapters"]] == [False, False, False, True]


def test_pinned_ones_are_loaded_first(clinic: Clinic) -> None:
    """A replica that starts reads nothing twice and evicts nobody."""
    pin(clinic, "d")
    assert tiers(clinic.manager.sync())["d"] == "device"
    assert clinic.decoder.reads == ["d-1", "a-1", "b-1"]


def test_a_pinned_version_survives_a_storm_of_others_and_an_unpinned_one_does_not(
    clinic: Clinic,
) -> None:
    clinic.manager.sync()
    pin(clinic, "a")
    clinic.manager.sync()
    cold = storm(clinic, ("b", "c", "d"))
    assert sum(cold.values()) > 20, "three that share two places: the storm evicts"
    installed = [text for text, _ in clinic.decoder.installs]
    assert (installed.count("a-1"), "a@1" in clinic.decoder.texts) == (1, True)


def test_unpinned_it_makes_room_like_any_other(clinic: Clinic) -> None:
    pin(clinic, "a")
    clinic.manager.sync()
    storm(clinic, ("b", "c", "d"))
    assert "a@1" in clinic.decoder.texts
    pin(clinic, "a", pinned=False)
    clinic.manager.sync()
    storm(clinic, ("b", "c", "d"))
    assert clinic.decoder.texts == {"b@1", "c@1", "d@1"}


def test_both_versions_of_a_trial_are_pinned_and_the_loser_is_not(
    clinic: Clinic, tmp_path: Path
) -> None:
    add(clinic.writer(), tmp_path, "a", "2", activation="canary", weight=0.1, pinned=True)
    report = clinic.manager.sync()
    shown = [(a["version"], a["state"], a["weight"]) for a in report["adapters"] if a["pinned"]]
    assert shown == [("1", "active", None), ("2", "canary", 0.1)]
    storm(clinic, ("b", "c", "d"))
    assert {"a@1", "a@2"} < clinic.decoder.texts
    assert len(clinic.decoder.held) == 3
    clinic.writer().change(lambda c: changes.update(c, "a", promote=True))
    clinic.manager.sync()
    clinic.settle()
    assert "a@1" not in clinic.decoder.texts, "it is out of service, so its pin is gone"
    storm(clinic, ("b", "c", "d"))
    assert "a@2" in clinic.decoder.texts


def test_where_every_place_is_pinned_the_others_are_told_at_once(clinic: Clinic) -> None:
    for name in ("a", "b", "c"):
        pin(clinic, name)
    clinic.manager.sync()
    started = time.monotonic()
    with pytest.raises(AdapterUnavailable, match="all 3 places for adapters hold pinned ones"):
        clinic.lease("d", None)
    assert time.monotonic() - started < 5
    pin(clinic, "c", pinned=False)
    clinic.manager.sync()
    clinic.manager.leases.release(clinic.lease("d", None))
    assert clinic.decoder.texts == {"a@1", "b@1", "d@1"}


def test_a_pin_waits_for_a_place_that_answers_hold(clinic: Clinic) -> None:
    clinic.manager.sync()
    leases = [clinic.lease(name, None) for name in ("a", "b", "c")]
    pin(clinic, "d")
    with ThreadPoolExecutor(1) as pool:
        syncing = pool.submit(clinic.manager.sync)
        time.sleep(0.1)
        assert not syncing.done()
        clinic.manager.leases.release(leases[1])
        assert tiers(syncing.result(10))["d"] == "device"
    assert clinic.decoder.texts == {"a@1", "c@1", "d@1"}
