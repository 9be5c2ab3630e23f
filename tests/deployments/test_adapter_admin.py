"""Changes of the catalogue: what is refused before a fetch, and who has not followed."""

from pathlib import Path
from typing import Any

import pytest

from adapters.changes import ChangeRefused
from adapters.ingest import VersionRequest
from deployments.adapter_admin import AdapterAdmin, BroadcastReply
from tests.deployments.quiet_admin import BASE, OneReplica, quiet_admin


class Stuck(OneReplica):
    """Answers, and goes on with the catalogue that it had."""

    def __init__(self, held: BroadcastReply) -> None:
        self._held = held

    async def broadcast(self, timeout_s: float) -> BroadcastReply:
        return self._held


@pytest.fixture
def admin(tmp_path: Path) -> AdapterAdmin:
    return quiet_admin(tmp_path)


async def test_too_many_pins_are_refused_before_anything_is_fetched(admin: AdapterAdmin) -> None:
    """Two places: one may be pinned. The source does not exist, and nobody looks for it."""
    await admin.update("derm", {"pinned": True}, None)
    more: dict[str, Any] = {"activation": "active", "weight": None, "expected_revision": None}
    wanted = VersionRequest("cardio", None, BASE, "2", "/no/such/folder")
    with pytest.raises(ChangeRefused, match="2 versions would be pinned.* 2 slots"):
        await admin.add(wanted, pinned=True, **more)
    trial = VersionRequest("derm", None, BASE, "2", "/no/such/folder")
    with pytest.raises(ChangeRefused, match="2 versions would be pinned"):
        await admin.add(trial, pinned=None, **{**more, "activation": "canary", "weight": 0.5})
    unpinned = await admin.update("derm", {"pinned": False}, None)
    assert unpinned.adapter is not None
    assert unpinned.adapter["pinned"] is False
    assert unpinned.revision == 2


async def test_a_replica_that_does_not_know_of_a_pin_has_not_confirmed(admin: AdapterAdmin) -> None:
    before = await admin._replicas.reports(1)
    pinned = await admin.update("derm", {"pinned": True}, None)
    assert pinned.unconfirmed == {}
    admin._replicas = Stuck(before)
    unpinned = await admin.update("derm", {"pinned": False}, None)
    assert unpinned.unconfirmed == {}, "it still holds them as they should be now"
    again = await admin.update("derm", {"pinned": True}, None)
    assert again.unconfirmed == {"one": "is at revision 0"}


async def test_a_listing_makes_no_replica_follow_or_load(
    admin: AdapterAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broadcast(self: OneReplica, timeout_s: float) -> BroadcastReply:
        raise AssertionError("a read had an effect")

    monkeypatch.setattr(OneReplica, "broadcast", broadcast)
    listed = await admin.listed()
    assert (listed["revision"], listed["replicas"], listed["unconfirmed"]) == (0, ["one"], {})
