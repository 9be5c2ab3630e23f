"""The operator's requests as they may really come: malformed, at once, and left half-way."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters import sources
from adapters.versions import AdapterVersion
from deployments.adapter_admin import MAX_INGESTS, NobodyToAsk
from tests.deployments.clinic_in_process import ClinicInProcess
from tests.deployments.model.test_bad_adapters import WEIGHTS, add, in_config, kept
from tests.tiny_models import make_adapter

Catalogs = dict[str, tuple[Path, Path]]


@pytest.fixture
async def clinic(tiny_catalogs: Catalogs, tmp_path: Path) -> AsyncIterator[ClinicInProcess]:
    clinic = ClinicInProcess(*tiny_catalogs["llama"], tmp_path / "state")
    yield clinic
    await clinic.close()


@pytest.fixture
def source(tiny_catalogs: Catalogs, tmp_path: Path) -> Path:
    base = tiny_catalogs["llama"][0]
    return make_adapter(base, tmp_path / "new", base_name=str(base), seed=7)


async def in_pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    """httpx sends it chunked, without a length."""
    for piece in pieces:
        yield piece


async def test_bodies_that_are_none(clinic: ClinicInProcess) -> None:
    json_type = {"content-type": "application/json"}
    cases: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("POST", "", {"content": b"{}", "headers": {"content-type": "text/plain"}},
         415, "Content-Type"),
        ("POST", "", {"content": b"name=derm"}, 415, "Content-Type"),
        ("POST", "", {"content": b"[" * 60_000, "headers": json_type}, 400, "nested too deeply"),
        ("POST", "", {"content": b"{" + b" " * 70_000, "headers": json_type}, 413, "65536"),
        ("POST", "", {"content": in_pieces(b" " * 40_000, b" " * 40_000), "headers": json_type},
         413, "65536"),
        ("POST", "", {"content": b'{"name": 1' + b"0" * 5000 + b"}", "headers": json_type},
         400, "JSON"),
        ("DELETE", "/derm", {"content": in_pieces(b'{"nonsense": 1}')}, 415, "Content-Type"),
        ("DELETE", "/derm", {"content": in_pieces(b'{"nons', b'ense": 1}'), "headers": json_type},
         400, "nonsense"),
        ("DELETE", "/" + "n" * 10_000, {}, 404, "no adapter 'nnn"),
        ("DELETE", "/a%2Fb", {}, 404, "no such path"),
        ("PATCH", "/%2e%2e", {"json": {"promote": True}}, 404, "no adapter '..'"),
        ("PATCH", "/%ff%00", {"json": {"promote": True}}, 404, "no adapter"),
    ]  # fmt: skip
    for method, path, sent, status, part in cases:
        reply = await clinic.http.request(method, f"/v1/adapters{path}", **sent)
        assert reply.status_code == status, (method, path[:20], reply.text[:300])
        assert part in reply.json()["error"]["message"]
        assert len(reply.content) < 2000
    assert kept(clinic) == []


async def test_a_delete_whose_body_comes_in_pieces(clinic: ClinicInProcess) -> None:
    reply = await clinic.http.request(
        "DELETE",
        "/v1/adapters/derm",
        content=in_pieces(b'{"expected_', b'revision": 0}'),
        headers={"content-type": "application/json"},
    )
    assert reply.status_code == 200, reply.text
    assert reply.json()["revision"] == 1


async def test_of_many_who_add_the_same_version_one_wins(
    clinic: ClinicInProcess, source: Path, tiny_catalogs: Catalogs, tmp_path: Path
) -> None:
    """The losers' files are gone; the winner's, and those that two had in common, are there."""
    base = tiny_catalogs["llama"][0]
    folders = [source, source] + [
        make_adapter(base, tmp_path / str(seed), base_name=str(base), seed=seed)
        for seed in (31, 32, 33)
    ]
    replies = await asyncio.gather(*(add(clinic, folder) for folder in folders))
    assert sorted(reply.status_code for reply in replies) == [201, 409, 409, 409, 409]
    catalog = clinic.store.read()
    assert catalog.revision == 1
    folders_kept = {name.split("/")[1] for name in kept(clinic) if "/" in name}
    assert folders_kept >= catalog.digests
    assert len(folders_kept - catalog.digests) <= 1, "only what two of them had put"
    for adapter in catalog.adapters:
        for version in adapter.versions:
            clinic.store.folder(version)


async def test_nobody_can_try_it(clinic: ClinicInProcess, source: Path) -> None:
    async def dead(name: str, version: AdapterVersion) -> list[str]:
        raise NobodyToAsk("the new version could not be tried on a model replica: ActorDiedError")

    clinic.reach.try_adapter = dead  # type: ignore[method-assign]
    reply = await add(clinic, source)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_model_replica")
    assert kept(clinic) == []
    assert clinic.store.read().revision == 0


@pytest.mark.parametrize("is_fit", [True, False])
async def test_a_client_that_leaves_stops_no_change_half_way(
    is_fit: bool, clinic: ClinicInProcess, source: Path
) -> None:
    """Listed on every replica, or refused and deleted; never files that nobody lists."""
    if not is_fit:
        in_config(target_modules=["no_such_layer"])(source)
    entered, gate = asyncio.Event(), asyncio.Event()
    try_adapter = clinic.reach.try_adapter

    async def slow(name: str, version: AdapterVersion) -> list[str]:
        entered.set()
        await gate.wait()
        return await try_adapter(name, version)

    clinic.reach.try_adapter = slow  # type: ignore[method-assign]
    request = asyncio.create_task(add(clinic, source))
    await entered.wait()
    assert any(name.endswith(WEIGHTS) for name in kept(clinic))
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    gate.set()
    await wait_for(lambda: not clinic.admin._running)
    if is_fit:
        assert clinic.store.read().revision == 1
        for replica in clinic.replicas:
            assert (await replica.info())["adapters_revision"] == 1
    else:
        assert kept(clinic) == []
        assert clinic.store.read().revision == 0


async def wait_for(condition: Any, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_slow_sources_hold_up_nobody_else(
    clinic: ClinicInProcess, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads that classify questions are few; adapters on their way have their own."""
    gate = threading.Event()

    def slow(opened: Any, name: str, *limits: Any) -> Iterator[bytes]:
        assert gate.wait(20)
        yield from chunks(opened, name, *limits)

    chunks = sources._chunks
    monkeypatch.setattr(sources, "_chunks", slow)
    adding = [
        asyncio.create_task(add(clinic, source, version=f"v{number}"))
        for number in range(10 * MAX_INGESTS)
    ]
    await asyncio.sleep(0.2)
    async with asyncio.timeout(3):
        await asyncio.to_thread(time.sleep, 0)
        listed = await clinic.http.get("/v1/adapters")
    assert listed.status_code == 200
    gate.set()
    replies = await asyncio.gather(*adding)
    assert {reply.status_code for reply in replies} == {201}


async def test_a_seed_that_was_damaged_meanwhile_is_named(
    clinic: ClinicInProcess, source: Path
) -> None:
    """The first change keeps the seed's files; what cannot be kept is said, and nothing changes."""
    file = clinic.store.seed_dir / "weights" / "cardio" / WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    try:
        reply = await add(clinic, source)
    finally:
        file.write_bytes(content)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "state_unavailable")
    assert "its sha256 is not the one that is listed" in reply.json()["error"]["message"]
    assert clinic.store.read().revision == 0
