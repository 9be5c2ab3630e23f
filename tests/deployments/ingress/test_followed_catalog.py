"""A router replica follows the live catalogue; a session keeps its version of a trial."""

import time
from collections import Counter
from pathlib import Path

import pytest

from adapters import changes
from deployments.ingress.followed_catalog import FollowedCatalog
from deployments.messages import AdapterCard, ServedModels
from tests.adapters.live_catalogs import add, make_seed, store_of


@pytest.fixture
def followed(tmp_path: Path) -> FollowedCatalog:
    seed = make_seed(tmp_path / "seed")
    return FollowedCatalog(store_of(seed, tmp_path / "state"), "tiny", lambda: 0.02)


def test_a_change_by_another_process_is_followed(followed: FollowedCatalog, tmp_path: Path) -> None:
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


def test_a_damaged_catalogue_changes_nothing(followed: FollowedCatalog, tmp_path: Path) -> None:
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


def test_sessions_share_out_by_the_weight_and_stay() -> None:
    card = AdapterCard("derm", "dermatology", "1", "2", 0.3)
    chosen = {f"s{i}": card.for_session(f"s{i}").version for i in range(4000)}
    share = Counter(chosen.values())["2"] / len(chosen)
    assert 0.27 < share < 0.33
    assert all(card.for_session(s).version == version for s, version in chosen.items())
    # more weight only adds sessions: none that had the new version goes back
    more = AdapterCard("derm", "dermatology", "1", "2", 0.6)
    assert all(more.for_session(s).version == "2" for s, v in chosen.items() if v == "2")
    # another trial draws other sessions
    other = AdapterCard("derm", "dermatology", "1", "3", 0.3)
    again = {s for s in chosen if other.for_session(s).version == "3"}
    assert len(again & {s for s, v in chosen.items() if v == "2"}) < 0.6 * len(again)
    drawn = Counter(card.for_session(None).version for _ in range(2000))
    assert 0.24 < drawn["2"] / 2000 < 0.36


def test_a_clinic_for_a_session_names_the_version_that_answers() -> None:
    cards = (AdapterCard("derm", "dermatology", "1", "2", 1.0), AdapterCard("c", "cardiology", "4"))
    clinic = ServedModels("tiny", cards, ("cardiology", "dermatology"), 16, 64, 1)
    shown = clinic.for_session("s")
    assert [(c.name, c.version) for c in shown.adapters] == [("derm", "2"), ("c", "4")]
    assert [c.version for c in clinic.adapters] == ["1", "4"]
