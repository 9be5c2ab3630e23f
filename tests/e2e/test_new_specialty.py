"""A specialty comes and goes with one command on a running application with two router replicas."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deployments.clinic_in_process import MAX_TOKENS, Expected
from tests.e2e.conftest import ROOT, Deploy
from tests.router.added_questions import added_questions
from tests.tiny_models import make_adapter

APP = "new-specialty"
QUESTIONS = added_questions("dentistry")
ASKED = "what can I do about my tooth filling"


def command(*args: str) -> dict[str, Any]:
    """The last line that `python -m scripts.add_specialty` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.add_specialty", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def routed() -> list[tuple[str | None, str | None]]:
    """(specialty, adapter) that each router replica gives the question."""
    from ray import serve

    handle = serve.get_deployment_handle("Router", APP)
    found = handle.broadcast("classify", [[ASKED]]).results(timeout_s=30)
    return [(route.specialty, route.adapter) for [route] in found]


def revisions() -> list[int]:
    """Of the catalogue, as each router replica knows it without looking again."""
    from ray import serve

    handle = serve.get_deployment_handle("Router", APP)
    found = handle.broadcast("readiness").results(timeout_s=30)
    return [report["router"]["catalog_revision"] for _, report in found]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.3)


def ask(client: httpx.Client) -> tuple[str | None, str | None, str | None, str]:
    """(specialty, adapter, its version, the answer)"""
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": ASKED}],
        "max_tokens": MAX_TOKENS,
    }
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    content = reply.json()
    ours = content["polyclinic"]
    answer = content["choices"][0]["message"]["content"]
    return ours["specialty"], ours["adapter"], ours["adapter_version"], answer


def ask_often(client: httpx.Client) -> set[tuple[str | None, str | None, str | None, str]]:
    with ThreadPoolExecutor(8) as pool:
        return set(pool.map(lambda _: ask(client), range(12)))


@pytest.mark.long
def test_label_and_adapter_come_and_go_on_both_router_replicas(
    tiny_catalogs: dict[str, tuple[Path, Path]],
    tiny_router_dir: Path,
    tmp_path: Path,
    deploy: Deploy,
) -> None:
    from deployments.app import build_application
    from deployments.settings import parse_settings
    from router.versions import publish

    base, catalog = tiny_catalogs["llama"]
    specialist = make_adapter(base, tmp_path / "dentistry", base_name=str(base), seed=41)
    oracle = Expected(base, {"dentistry": specialist}, question=ASKED)
    versions = tmp_path / "router"
    first = publish(tiny_router_dir, versions)
    questions = tmp_path / "questions.txt"
    questions.write_text("\n".join(QUESTIONS))
    settings = parse_settings(
        {
            "base_model": str(base),
            "adapters": str(catalog),
            "state_dir": str(tmp_path / "state"),
            "device": "cpu",
            "auth": {"open_admin": True},
            "router": {"artefact": str(versions), "replicas": 2},
            "engine": {"dtype": "float32", "max_rows": 4, "max_input_tokens": 200},
        }
    )
    with deploy(build_application(settings), APP) as client:
        wait_for(lambda: len(routed()) == 2, "two router replicas")
        assert "dentistry" not in {specialty for specialty, _ in routed()}

        report = command(
            *("--label", "dentistry", "--questions", str(questions), "--out", str(versions)),
            *("--adapter", str(specialist), "--adapter_version", "7"),
            *("--url", str(client.base_url)),
        )
        assert (report["adapter"], report["revision"]) == ("dentistry", 1)
        assert report["unconfirmed"] == {}
        assert (report["live"], report["routers"]) == (True, 2), "both routers said so"
        assert revisions() == [1, 1], "confirmed means that every router knows it"
        assert routed() == [("dentistry", "dentistry")] * 2
        expected = ("dentistry", "dentistry", "7", oracle.answer("dentistry"))
        assert expected[-1] != oracle.answer(None), "nothing is tested"
        assert ask_often(client) == {expected}
        assert client.get("/readyz").json()["router"]["version"] == report["version"]

        report = command(
            *("--out", str(versions), "--roll_back", "--name", "dentistry"),
            *("--url", str(client.base_url)),
        )
        assert (report["removed"], report["unconfirmed"]) == ("dentistry", {})
        assert (report["version"], report["live"]) == (first, True)
        assert not {("dentistry", "dentistry"), ("dentistry", None)} & set(routed())
        answers = ask_often(client)
        assert not {"dentistry"} & {part for answer in answers for part in answer[:2]}
        assert "dentistry" not in [m["id"] for m in client.get("/v1/models").json()["data"]]
