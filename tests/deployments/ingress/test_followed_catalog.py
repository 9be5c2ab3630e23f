"""A router replica follows the live catalogue."""

import time
from pathlib import Path

import pytest

from adapters import changes
from adapters.storage.last_good import LastGood
from adapters.storage.local import LocalStorage
from adapters.store import AdapterStore
from deployments.ingress.followed import InService, follow_catalog
from deployments.messages import AdapterCard
from deployments.reloader import Reloader
from tests.adapters.live_catalogs import add, make_seed, store_of


@pytest.fixture
def followed(tmp_path: Path) -> Reloader[InService]:
    seed = make_seed(tmp_path / "seed")
    return follow_catalog(store_of(seed, tmp_path / "state"), "tiny", lambda: 0.02)


def test_a_change_by_another_process_is_followed(
    followed: Reloader[InService], tmp_path: Path
) -> None:
    before = followed.current
    assert followed.refresh() is False
    other = store_of(tmp_path / "seed", tmp_path / "state")
    add(other, tmp_path, "derm", "2", activation="canary", weight=0.25)
    followed.start()
    deadline = time.monotonic() + 10
    while followed.current is before and time.monotonic() < deadline:
        time.sleep(0.02)
    followed.stop()
    assert followed.current.cards == (
        AdapterCard("derm", "derm", "1", "2", 0.25),
        AdapterCard("cardio", "cardio", "1"),
    )
    other.change(lambda c: changes.remove(c, "cardio"))
    assert followed.refresh() is True
    assert followed.current.by_specialty == {"derm": "derm"}
    assert before.by_specialty == {"derm": "derm", "cardio": "cardio"}, "whoever took it keeps it"


def test_a_damaged_catalogue_changes_nothing(followed: Reloader[InService], tmp_path: Path) -> None:
    before = followed.current
    other = store_of(tmp_path / "seed", tmp_path / "state")
    other.change(lambda c: changes.remove(c, "cardio"))
    file = tmp_path / "state" / "catalog.yaml"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    assert followed.refresh() is False
    assert followed.current is before
    assert followed.problem is not None
    assert str(tmp_path / "state") in followed.problem
    file.write_bytes(whole)
    assert followed.refresh() is True
    assert followed.problem is None


def test_a_revision_that_goes_back_is_taken_over_with_a_warning(
    followed: Reloader[InService], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = store_of(tmp_path / "seed", tmp_path / "state")
    file = tmp_path / "state" / "catalog.yaml"
    other.change(lambda c: changes.remove(c, "cardio"))
    first = file.read_bytes()
    other.change(lambda c: changes.remove(c, "derm"))
    assert followed.refresh() is True
    file.write_bytes(first)
    assert followed.refresh() is True
    assert followed.current.revision == 1
    assert "went from revision 2 to 1" in caplog.text


def test_a_router_that_starts_while_the_state_is_away_serves_what_its_node_knew(
    tmp_path: Path,
) -> None:
    make_seed(tmp_path / "seed")

    def opened() -> AdapterStore:
        files, copy = LocalStorage(tmp_path / "state"), LastGood(tmp_path / "node")
        return AdapterStore(files, tmp_path / "seed", tmp_path / "cache", copy)

    live = opened()
    live.change(lambda c: changes.remove(c, "cardio"))
    before = follow_catalog(live, "tiny", lambda: 0.0)
    (tmp_path / "state").rename(tmp_path / "away")
    for router in (before, follow_catalog(opened(), "tiny", lambda: 0.0)):
        assert router.refresh() is False
        assert router.problem is not None
        assert "revision 1 was served" in router.problem
        assert (router.current.revision, router.current.by_specialty) == (1, {"derm": "derm"})
        (tmp_path / "away").rename(tmp_path / "state")
        router.refresh()
        assert router.problem is None
        (tmp_path / "state").rename(tmp_path / "away")
