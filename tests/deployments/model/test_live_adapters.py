"""Adapters come and go on two replicas: every answer is checked against PEFT's for its version."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.engine.request import SamplingParams
from tests.deployments.clinic_in_process import ClinicInProcess, Expected
from tests.tiny_models import make_adapter

Catalogs = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def versions(tiny_catalogs: Catalogs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapter folders of the tiny Llama: derm's first version, and two later ones."""
    base, catalog = tiny_catalogs["llama"]
    folder = tmp_path_factory.mktemp("versions")
    made = {"derm-1": catalog / "weights" / "derm", "cardio-1": catalog / "weights" / "cardio"}
    for number, rank in ((2, 4), (3, 12)):  # the third grows the bank
        made[f"derm-{number}"] = make_adapter(
            base, folder / str(number), base_name=str(base), seed=10 + number, rank=rank
        )
    return made


@pytest.fixture(scope="module")
def expected(tiny_catalogs: Catalogs, versions: dict[str, Path]) -> dict[str, str]:
    oracle = Expected(tiny_catalogs["llama"][0], versions)
    answers = {name: oracle.answer(name) for name in versions} | {"base": oracle.answer(None)}
    assert len(set(answers.values())) == len(answers), "answers do not differ: nothing is tested"
    return answers


@pytest.fixture(params=["fast", "reference"])
async def clinic(
    request: pytest.FixtureRequest, tiny_catalogs: Catalogs, tmp_path: Path
) -> AsyncIterator[ClinicInProcess]:
    clinic = ClinicInProcess(
        *tiny_catalogs["llama"], tmp_path / "state", decoder=request.param, max_adapters=4
    )
    yield clinic
    await clinic.close()


@pytest.fixture
async def fast_clinic(tiny_catalogs: Catalogs, tmp_path: Path) -> AsyncIterator[ClinicInProcess]:
    clinic = ClinicInProcess(*tiny_catalogs["llama"], tmp_path / "state", max_adapters=3)
    yield clinic
    await clinic.close()


async def add(clinic: ClinicInProcess, source: Path, version: str, **more: Any) -> Any:
    body = {"name": "derm", "source": str(source), "version": version, **more}
    return await clinic.http.post("/v1/adapters", json=body)


async def on_both(clinic: ClinicInProcess, version: str | None = None) -> list[str]:
    return [await clinic.ask(number, "derm", version) for number in range(2)]


async def test_update_canary_promote_roll_back_and_remove_on_every_replica(
    clinic: ClinicInProcess, versions: dict[str, Path], expected: dict[str, str]
) -> None:
    assert await on_both(clinic) == [expected["derm-1"]] * 2
    updated = await add(clinic, versions["derm-2"], "2")
    assert updated.status_code == 201, updated.text
    body = updated.json()
    assert (body["confirmed"], body["replicas"], body["unconfirmed"]) == (True, 2, {})
    assert body["adapter"]["previous"] == ["1"]
    assert {r["2"]["tier"] for r in body["adapter"]["replicas"].values()} == {"device"}
    assert await on_both(clinic) == [expected["derm-2"]] * 2
    # a question that was routed before the update still gets the version that it was routed to
    assert await on_both(clinic, "1") == [expected["derm-1"]] * 2

    trial = await add(clinic, versions["derm-3"], "3", state="canary", canary_weight=0.5)
    assert trial.status_code == 201, trial.text
    assert trial.json()["adapter"]["canary"] == {"version": "3", "weight": 0.5}
    for version in ("2", "3"):
        assert await on_both(clinic, version) == [expected[f"derm-{version}"]] * 2

    promoted = await clinic.http.patch("/v1/adapters/derm", json={"promote": True})
    assert promoted.status_code == 200, promoted.text
    assert await on_both(clinic) == [expected["derm-3"]] * 2
    rolled = await clinic.http.post("/v1/adapters/derm/rollback")
    assert rolled.status_code == 200, rolled.text
    assert rolled.json()["adapter"]["version"] == "2"
    assert await on_both(clinic) == [expected["derm-2"]] * 2
    assert [await clinic.ask(n, "cardio") for n in range(2)] == [expected["cardio-1"]] * 2

    disabled = await clinic.http.patch(
        "/v1/adapters/derm", json={"state": "disabled", "reason": "recalled"}
    )
    assert disabled.json()["confirmed"]
    assert clinic.catalog.current.by_specialty == {"cardiology": "cardio"}
    removed = await clinic.http.request("DELETE", "/v1/adapters/derm")
    assert removed.status_code == 200, removed.text
    for replica in clinic.replicas:
        assert [a["name"] for a in (await replica.info())["adapters"]] == ["cardio"]
        held = replica._engine.info.adapters
        assert [key.partition("@")[0] for key in held] == ["cardio"], "derm left the device"
    assert await clinic.ask(0, "derm") == "adapter_gone"


async def test_a_replica_that_starts_late_has_what_the_others_have(
    fast_clinic: ClinicInProcess, versions: dict[str, Path], expected: dict[str, str]
) -> None:
    await add(fast_clinic, versions["derm-2"], "2")
    fast_clinic.replicas.append(fast_clinic.new_replica())
    assert await fast_clinic.ask(2, "derm") == expected["derm-2"]


async def test_one_that_no_broadcast_reached_is_named_and_converges_by_itself(
    fast_clinic: ClinicInProcess, versions: dict[str, Path], expected: dict[str, str]
) -> None:
    fast_clinic.reach.lost = {1}
    reply = await add(fast_clinic, versions["derm-2"], "2")
    assert reply.status_code == 202
    assert reply.json()["unconfirmed"] == {"1": "it was cut off"}
    # a router that knows the change already sends it there: it loads on demand
    assert await fast_clinic.ask(1, "derm", "2") == expected["derm-2"]
    fast_clinic.replicas[1].reconfigure({"adapter_check_s": 0.05})
    for _ in range(100):
        report = await fast_clinic.replicas[1].info()
        if report["adapters_revision"] == 1:
            break
        await asyncio.sleep(0.05)
    assert {a["name"]: a["version"] for a in report["adapters"]} == {"derm": "2", "cardio": "1"}


async def test_an_answer_under_way_finishes_on_its_version_and_then_frees_it(
    fast_clinic: ClinicInProcess, versions: dict[str, Path], expected: dict[str, str]
) -> None:
    replica = fast_clinic.replicas[0]
    call = fast_clinic.call("derm", "1", stream=True, sampling=SamplingParams(120, min_tokens=120))
    events = replica.generate(call)
    first = await anext(events)
    assert first.finish_reason is None
    await add(fast_clinic, versions["derm-2"], "2")
    assert await fast_clinic.ask(0, "derm") == expected["derm-2"]
    assert any(key.startswith("derm@1") for key in replica._engine.info.adapters)
    text = first.text + "".join([event.text async for event in events])
    assert text.startswith(expected["derm-1"].rstrip("\ufffd")[:8])
    for _ in range(100):
        if not any(key.startswith("derm@1") for key in replica._engine.info.adapters):
            break
        await asyncio.sleep(0.02)
    assert not any(key.startswith("derm@1") for key in replica._engine.info.adapters)


async def test_what_does_not_fit_is_refused_and_the_version_before_serves_on(
    fast_clinic: ClinicInProcess,
    versions: dict[str, Path],
    expected: dict[str, str],
    tiny_catalogs: Catalogs,
    tmp_path: Path,
) -> None:
    base = str(fast_clinic.base)

    def broken(name: str, **options: Any) -> Path:
        return make_adapter(fast_clinic.base, tmp_path / name, base_name=base, seed=3, **options)

    wrong_target = broken("target")
    config = json.loads((wrong_target / "adapter_config.json").read_text())
    config["target_modules"] = ["no_such_layer"]
    (wrong_target / "adapter_config.json").write_text(json.dumps(config))
    cut = Path(shutil.copytree(versions["derm-2"], tmp_path / "cut"))
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    narrow = Path(shutil.copytree(versions["derm-2"], tmp_path / "narrow"))
    state = load_file(narrow / "adapter_model.safetensors")
    for name in state:
        if "lora_A" in name:
            state[name] = state[name][:, :-8].contiguous()
    save_file(state, narrow / "adapter_model.safetensors")
    faint = Path(shutil.copytree(versions["derm-2"], tmp_path / "faint"))
    state = load_file(faint / "adapter_model.safetensors")
    for name in state:
        if "lora_B" in name:
            state[name] = torch.full_like(state[name], 1e-44)
    save_file(state, faint / "adapter_model.safetensors")
    cases = [
        (tiny_catalogs["flan_t5"][1] / "weights" / "derm", "trained on"),
        (wrong_target, "no_such_layer"),
        (cut, "safetensors"),
        (narrow, "expected"),
        (faint, "does not change the base model's logits"),
        (broken("wide", rank=128), "allowed are 1 to 64"),
        (broken("biases", lora_bias=True), "lora_bias"),
        (tmp_path / "nowhere", "missing"),
    ]
    for number, (source, part) in enumerate(cases):
        reply = await add(fast_clinic, source, f"bad-{number}")
        assert reply.status_code == 422, (source, reply.text)
        assert part in reply.json()["error"]["message"], reply.text
        assert reply.json()["error"]["problems"]
    assert fast_clinic.store.read().revision == 0
    assert await on_both(fast_clinic) == [expected["derm-1"]] * 2


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"name": "a/b"}, 400, "name"),
        ({"name": "n" * 10_000}, 400, "name"),
        ({"version": "1 2"}, 400, "version"),
        ({"version": "v@2"}, 400, "version"),
        ({"source": "/srv/../etc"}, 422, "'..' is not allowed"),
        ({"version": "1"}, 409, "has a version '1' already"),
        ({"specialty": "other"}, 409, "is for dermatology, not other"),
        ({"name": "derm2"}, 400, "name its specialty"),
        ({"name": "derm2", "specialty": "dermatology"}, 409, "two adapters in service"),
        ({"state": "canary"}, 400, "canary_weight"),
        ({"canary_weight": 0.5}, 400, "canary_weight"),
        ({"nonsense": 1}, 400, "nonsense"),
        ({"expected_revision": 7}, 409, "at revision 0, not 7"),
    ],
)
async def test_requests_that_make_no_sense(
    body: dict[str, Any],
    status: int,
    part: str,
    quiet_clinic: ClinicInProcess,
    versions: dict[str, Path],
) -> None:
    asked = {"name": "derm", "source": str(versions["derm-2"]), "version": "2"} | body
    reply = await quiet_clinic.http.post("/v1/adapters", json=asked)
    assert reply.status_code == status, reply.text
    assert part in reply.json()["error"]["message"]
    assert quiet_clinic.store.read().revision == 0


@pytest.fixture(scope="module")
def quiet_clinic(
    tiny_catalogs: Catalogs, tmp_path_factory: pytest.TempPathFactory
) -> ClinicInProcess:
    """Nothing succeeds in changing it, so the module's tests share it."""
    return ClinicInProcess(*tiny_catalogs["llama"], tmp_path_factory.mktemp("quiet") / "state")


async def test_unknown_names_and_methods(quiet_clinic: ClinicInProcess) -> None:
    http = quiet_clinic.http
    assert (await http.request("DELETE", "/v1/adapters/none")).status_code == 404
    assert (await http.patch("/v1/adapters/none", json={"promote": True})).status_code == 404
    assert (await http.post("/v1/adapters/derm/rollback")).status_code == 409
    assert (await http.patch("/v1/adapters/derm", json={})).status_code == 400
    listed = (await http.get("/v1/adapters")).json()
    assert [a["name"] for a in listed["adapters"]] == ["derm", "cardio"]
    assert listed["replicas"] == ["0", "1"]


async def test_two_writers_at_once(fast_clinic: ClinicInProcess, versions: dict[str, Path]) -> None:
    """Both want version 2: one gets it, the other is told."""
    replies = await asyncio.gather(
        add(fast_clinic, versions["derm-2"], "2"), add(fast_clinic, versions["derm-3"], "2")
    )
    assert sorted(reply.status_code for reply in replies) == [201, 409]


async def test_more_adapters_than_places(
    fast_clinic: ClinicInProcess, versions: dict[str, Path], expected: dict[str, str]
) -> None:
    """The bank holds 3: the least recently asked leaves for memory, and comes back when asked."""
    http = fast_clinic.http
    for number in range(4):
        body = {
            "name": f"extra{number}",
            "specialty": f"extra{number}",
            "source": str(versions[f"derm-{2 + number % 2}"]),
            "version": "1",
        }
        reply = await http.post("/v1/adapters", json=body)
        assert reply.status_code == 201, reply.text
    tiers = (await fast_clinic.replicas[0].info())["adapters"]
    assert sorted(a["tier"] for a in tiers) == ["device"] * 3 + ["host"] * 3
    asked = [await fast_clinic.ask(0, f"extra{number % 4}") for number in range(8)]
    assert asked == [expected["derm-2"], expected["derm-3"]] * 4
    together = await asyncio.gather(
        *(fast_clinic.ask(0, name) for name in ("derm", "cardio", "extra0", "extra1") * 3)
    )
    wanted = [expected[name] for name in ("derm-1", "cardio-1", "derm-2", "derm-3")] * 3
    assert together == wanted
    assert len(fast_clinic.replicas[0]._engine.info.adapters) <= 4


async def test_a_pinned_adapter_stays_on_every_replica(
    fast_clinic: ClinicInProcess, versions: dict[str, Path], expected: dict[str, str]
) -> None:
    """Three places, one pinned: three others take turns in the two that are left."""
    http = fast_clinic.http
    for number in range(2):
        body = {
            "name": f"extra{number}",
            "specialty": f"extra{number}",
            "source": str(versions[f"derm-{2 + number}"]),
            "version": "1",
        }
        assert (await http.post("/v1/adapters", json=body)).status_code == 201
    pinned = await http.patch("/v1/adapters/derm", json={"pinned": True})
    assert pinned.status_code == 200, pinned.text
    assert (await http.patch("/v1/adapters/cardio", json={"pinned": True})).status_code == 200
    full = await http.patch("/v1/adapters/extra0", json={"pinned": True})
    assert (full.status_code, full.json()["error"]["code"]) == (409, "adapter_conflict")
    assert "3 versions would be pinned" in full.json()["error"]["message"]
    await http.patch("/v1/adapters/cardio", json={"pinned": False})
    others = {"cardio": "cardio-1", "extra0": "derm-2", "extra1": "derm-3"}
    for name in list(others) * 3:
        for replica in range(2):
            assert await fast_clinic.ask(replica, name) == expected[others[name]]
            held = fast_clinic.replicas[replica]._engine.info.adapters
            assert any(key.startswith("derm@") for key in held), held
    assert await on_both(fast_clinic) == [expected["derm-1"]] * 2
    for one in fast_clinic.replicas:
        report = {a["name"]: a for a in (await one.info())["adapters"]}
        assert (report["derm"]["tier"], report["derm"]["pinned"]) == ("device", True)
    assert (
        await http.patch("/v1/adapters/derm", json={"state": "active", "reason": "x"})
    ).status_code == 400


async def test_many_updates_and_roll_backs_under_load(
    fast_clinic: ClinicInProcess, versions: dict[str, Path], expected: dict[str, str]
) -> None:
    """No failed question, no answer of another version, nothing left over."""
    await add(fast_clinic, versions["derm-2"], "2")
    by_version = {"1": expected["derm-1"], "2": expected["derm-2"]}
    outcomes: list[bool] = []
    stop = asyncio.Event()

    async def ask_on(replica: int) -> None:
        while not stop.is_set():
            version = fast_clinic.catalog.current.cards[0].version
            answer = await fast_clinic.ask(replica, "derm", version)
            outcomes.append(answer == by_version[version])

    asking = [asyncio.create_task(ask_on(number % 2)) for number in range(4)]
    for cycle in range(400):
        if cycle >= 12 and len(outcomes) > 40:
            break
        if cycle % 2:
            reply = await fast_clinic.http.patch("/v1/adapters/derm", json={"version": "2"})
        else:
            reply = await fast_clinic.http.post("/v1/adapters/derm/rollback")
        assert reply.status_code == 200, reply.text
    stop.set()
    await asyncio.gather(*asking)
    assert len(outcomes) > 40
    assert all(outcomes)
    for replica in fast_clinic.replicas:
        await replica.sync_adapters()
        # An eviction is a task of the engine's thread: it has run once a later task has.
        await asyncio.wrap_future(replica._engine.run_between_steps(lambda: None))
        assert len(replica._engine.info.adapters) == 2


@pytest.mark.parametrize("kind", ["gone", "corrupt"])
async def test_a_new_replica_starts_while_the_state_is_away(
    fast_clinic: ClinicInProcess,
    versions: dict[str, Path],
    expected: dict[str, str],
    tmp_path: Path,
    kind: str,
) -> None:
    """With what its node served last, files included; a change waits until the state is back."""
    assert (await add(fast_clinic, versions["derm-2"], "2")).status_code == 201
    state, away = tmp_path / "state", tmp_path / "away"
    state.rename(away)
    if kind == "corrupt":
        state.mkdir()
        (state / "catalog.yaml").write_bytes((away / "catalog.yaml").read_bytes()[:60])
    fast_clinic.replicas.append(fast_clinic.new_replica())
    assert [await fast_clinic.ask(number, "derm") for number in range(3)] == [
        expected["derm-2"]
    ] * 3
    for replica in fast_clinic.replicas:
        report = await replica.sync_adapters()
        assert report["revision"] == 1
        assert report["error"] is not None
    refused = await add(fast_clinic, versions["derm-3"], "3")
    assert refused.status_code == 503, refused.text
    assert refused.json()["error"]["code"] == "state_unavailable"
    shutil.rmtree(state, ignore_errors=True)
    away.rename(state)
    assert (await add(fast_clinic, versions["derm-3"], "3")).status_code == 201
    assert (await fast_clinic.replicas[2].sync_adapters())["error"] is None
    assert [await fast_clinic.ask(number, "derm") for number in range(3)] == [
        expected["derm-3"]
    ] * 3
