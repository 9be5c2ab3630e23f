"""Adapters on a running application with two model replicas: add, ask, update, ask, canary, kill a
replica, roll back, remove. After each step every replica's own report and its answers are checked.

The replicas have a simulated GPU each, for Ray to place them, and decode on the CPU.
"""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.model.loading import LoadedModel, load_model
from deployments.settings import Settings, parse_settings
from tests.deployments.clinic_in_process import MAX_TOKENS, QUESTION, Expected
from tests.e2e.conftest import Deploy
from tests.tiny_models import make_adapter

APP = "lifecycle"


def load_on_cpu(settings: Settings, device: str) -> LoadedModel:
    return load_model(settings, "cpu")


class Operator:
    """The operator's and the clients' calls."""

    def __init__(self, client: httpx.Client, expected: dict[str, str]) -> None:
        self.client = client
        self._expected = expected

    def change(self, method: str, path: str, status: int, **body: Any) -> dict[str, Any]:
        """A change that every replica has confirmed when it returns."""
        reply = self.client.request(method, f"/v1/adapters{path}", json=body)
        assert reply.status_code == status, reply.text
        content: dict[str, Any] = reply.json()
        assert content["confirmed"]
        assert content["replicas"] == 2
        return content

    def ask(self, model: str, session: str | None = None) -> tuple[str, str]:
        """(the version that is named, the answer)"""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": MAX_TOKENS,
        }
        headers = {"x-session-id": session} if session else {}
        reply = self.client.post("/v1/chat/completions", json=body, headers=headers)
        assert reply.status_code == 200, reply.text
        content = reply.json()
        return (
            content["polyclinic"]["adapter_version"],
            content["choices"][0]["message"]["content"],
        )

    def check_answers(self, name: str, version: str, num: int = 24) -> None:
        """Of so many at once, both replicas get some; all are of this version."""
        with ThreadPoolExecutor(12) as pool:
            answers = set(pool.map(lambda _: self.ask(name), range(num)))
        assert answers == {(version, self._expected[f"{name}-{version}"])}

    def held(self, name: str) -> list[dict[str, Any]]:
        """Version -> state, for each replica."""
        listed = self.client.get("/v1/adapters").json()
        assert listed["unconfirmed"] == {}
        found = next(a for a in listed["adapters"] if a["name"] == name)
        assert len(found["replicas"]) == 2
        return list(found["replicas"].values())

    def check_held(self, name: str, versions: set[str]) -> None:
        for replica in self.held(name):
            assert set(replica) == versions
            assert all(v["tier"] == "device" and v["error"] is None for v in replica.values())
            assert all(v["answers"] > 0 for v in replica.values()), "a replica answered nothing"


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.3)


def kill_one_model_replica() -> None:
    import ray

    names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True)]
    [first, *_] = [n for n in names if n.startswith(f"SERVE_REPLICA::{APP}#Model#")]
    ray.kill(ray.get_actor(first, namespace="serve"))


def num_running() -> int:
    from ray import serve

    states = serve.status().applications[APP].deployments["Model"].replica_states
    return states.get("RUNNING", 0)


@pytest.fixture(scope="module")
def sources(
    tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    base, catalog = tiny_catalogs["llama"]
    folder = tmp_path_factory.mktemp("sources")
    made = {"derm-1": catalog / "weights" / "derm"}
    for seed, name in enumerate(("derm-2", "derm-3", "onco-1"), start=21):
        made[name] = make_adapter(base, folder / name, base_name=str(base), seed=seed)
    return made


@pytest.mark.slow
def test_the_life_of_adapters_on_a_running_application(
    tiny_catalogs: dict[str, tuple[Path, Path]],
    sources: dict[str, Path],
    tmp_path: Path,
    deploy: Deploy,
) -> None:
    from deployments.app import build_application

    base, catalog = tiny_catalogs["llama"]
    oracle = Expected(base, sources)
    expected = {name: oracle.answer(name) for name in sources}
    assert len(set(expected.values())) == len(sources), "answers do not differ: nothing is tested"
    settings = parse_settings(
        {
            "base_model": str(base),
            "adapters": str(catalog),
            "state_dir": str(tmp_path / "state"),
            "device": "cuda",
            "auth": {"open_admin": True},
            "model_replicas": {"min": 2, "max": 2},
            "engine": {"dtype": "float32", "max_rows": 4, "max_input_tokens": 200},
        }
    )
    with deploy(build_application(settings, load=load_on_cpu), APP) as client:
        wait_for(lambda: num_running() == 2, "two replicas")
        operator = Operator(client, expected)
        operator.check_answers("derm", "1")
        operator.check_held("derm", {"1"})

        added = operator.change(
            "POST", "", 201, name="onco", specialty="oncology", version="1",
            source=str(sources["onco-1"]),
        )  # fmt: skip
        assert added["revision"] == 1
        assert "onco" in [m["id"] for m in client.get("/v1/models").json()["data"]]
        operator.check_answers("onco", "1")
        operator.check_held("onco", {"1"})

        operator.change("POST", "", 201, name="derm", version="2", source=str(sources["derm-2"]))
        operator.check_answers("derm", "2")
        operator.check_held("derm", {"2"})

        operator.change(
            "POST", "", 201, name="derm", version="3", source=str(sources["derm-3"]),
            state="canary", canary_weight=0.3,
        )  # fmt: skip
        sessions = [f"session-{number}" for number in range(40)]
        with ThreadPoolExecutor(8) as pool:
            first = list(pool.map(lambda s: operator.ask("derm", s), sessions))
            again = list(pool.map(lambda s: operator.ask("derm", s), sessions))
        assert first == again, "a session keeps its version"
        assert all(answer == expected[f"derm-{version}"] for version, answer in first)
        assert 3 <= Counter(version for version, _ in first)["3"] <= 24
        operator.check_held("derm", {"2", "3"})

        kill_one_model_replica()
        wait_for(lambda: num_running() < 2, "the killed replica is noticed", 30)
        reply = client.patch("/v1/adapters/derm", json={"promote": True})
        assert reply.status_code in (200, 202), reply.text
        wait_for(lambda: num_running() == 2, "the replacement")
        wait_for(lambda: len(client.get("/v1/adapters").json()["replicas"]) == 2, "both answer")
        operator.check_answers("derm", "3")
        operator.check_held("derm", {"3"})

        rolled = operator.change("POST", "/derm/rollback", 200)
        assert rolled["adapter"]["version"] == "2"
        operator.check_answers("derm", "2")
        operator.check_held("derm", {"2"})

        pinned = operator.change("PATCH", "/derm", 200, pinned=True)
        seen = client.get("/v1/operator").json()
        assert [m["adapters_revision"] for m in seen["models"]] == [pinned["revision"]] * 2
        assert {r["catalog_revision"] for r in seen["routers"]} == {pinned["revision"]}
        for replica in seen["models"]:
            [derm] = [a for a in replica["adapters"] if a["name"] == "derm"]
            shown = (derm["version"], derm["state"], derm["tier"], derm["pinned"])
            assert shown == ("2", "active", "device", True)

        operator.change("DELETE", "/onco", 200)
        refused = client.post("/v1/chat/completions", json={"model": "onco", "messages": []})
        assert refused.status_code in (400, 404)
        assert "onco" not in [m["id"] for m in client.get("/v1/models").json()["data"]]
        listed = client.get("/v1/adapters").json()
        assert [a["name"] for a in listed["adapters"]] == ["derm", "cardio"]
        operator.check_answers("derm", "2")
