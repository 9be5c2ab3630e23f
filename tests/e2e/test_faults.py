"""Faults of one application: no model replica, a hung one, load, draining, a change of the base.

The decoder is a stand-in that sleeps; its text is the name of the base model that it stands for.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.engine.decoder import RowSink
from deployments.engine.request import Request
from deployments.model.loading import LoadedModel
from deployments.settings import Settings, parse_settings
from tests.e2e.conftest import Deploy, wait_until_ready
from tests.e2e.stand_in import StandInDecoder, encode

APP = "faulty"
STEP_S = 0.05
OLD, NEW = "old-base", "new-base"
SHORT, LONG = 20, 40  # longest answers of the old and the new version


class SleepyDecoder(StandInDecoder):
    def __init__(self, base: str, device: str) -> None:
        super().__init__(device)
        self._base = base.encode().ljust(12, b".") + b"\0"

    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        for token in self._base:
            time.sleep(STEP_S)
            for row in range(len(group)):
                sink.push(row, token)


def load_sleepy(folder: Path, settings: Settings, device: str) -> LoadedModel:
    (folder / str(os.getpid())).touch()
    return LoadedModel(settings.base_model, SleepyDecoder(settings.base_model, device), encode)


def application(folder: Path, base: str, longest: int) -> Any:
    from deployments.app import build_application

    args = {
        "base_model": base,
        "device": "cuda",
        "engine": {"max_rows": 8, "default_output_tokens": 16, "max_output_tokens": longest},
    }
    return build_application(parse_settings(args), load=partial(load_sleepy, folder))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each model process that was started, named by its pid."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def clinic(deploy: Deploy, models: Path) -> Iterator[httpx.Client]:
    with deploy(application(models, OLD, SHORT), APP) as client:
        yield client


def ask(clinic: httpx.Client, **fields: Any) -> httpx.Response:
    """With the client that is there: making one takes 25 ms, and 48 are to be asked at once."""
    body = {"question": "a red rash", "specialty": "psychiatry", **fields}
    return clinic.post("/ask", json=body, timeout=60)


def model_pid(models: Path) -> int:
    """The newest model process that is alive."""
    files = sorted(models.iterdir(), key=lambda file: file.stat().st_mtime)
    return next(int(f.name) for f in reversed(files) if Path(f"/proc/{f.name}").exists())


def code_of(reply: httpx.Response) -> Any:
    return reply.json()["error"]["code"]


def timed(call: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    return call(), time.monotonic() - started


@pytest.mark.alone
def test_readiness_does_not_queue_behind_questions(clinic: httpx.Client) -> None:
    """Three times what fits: 24 questions of rows, and as many again wait."""
    assert ask(clinic).json()["answer"].startswith(OLD)
    with ThreadPoolExecutor(48) as pool:
        asked = [pool.submit(ask, clinic) for _ in range(48)]
        times = []
        while not all(future.done() for future in asked):
            reply, seconds = timed(lambda: clinic.get("/readyz"))
            assert reply.status_code == 200, reply.text
            times.append(seconds)
            time.sleep(0.05)
    assert [future.result().status_code for future in asked] == [200] * 48
    times.sort()
    assert len(times) > 5
    assert times[len(times) // 2] < 0.2, times


def test_a_hung_model_costs_its_questions_their_deadline_and_no_more(
    clinic: httpx.Client, models: Path
) -> None:
    pid = model_pid(models)
    os.kill(pid, signal.SIGSTOP)
    try:
        for stream in (False, True):
            reply, seconds = timed(partial(ask, clinic, timeout_s=1.5, stream=stream))
            assert (reply.status_code, code_of(reply)) == (408, "deadline_exceeded")
            assert 1 < seconds < 6
        _, seconds = timed(lambda: clinic.get("/readyz"))
        assert seconds < 2
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until_ready(clinic)
    assert ask(clinic).status_code == 200


def test_without_a_model_replica_a_question_is_refused_at_once(
    clinic: httpx.Client, models: Path
) -> None:
    """Also those that wait already, and at every path."""
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(partial(timed, partial(ask, clinic))) for _ in range(8)]
        time.sleep(0.2)
        os.kill(model_pid(models), signal.SIGKILL)
        outcomes = [future.result() for future in waiting]
    assert {reply.status_code for reply, _ in outcomes} <= {200, 503}
    assert max(seconds for _, seconds in outcomes) < 20
    deadline = time.monotonic() + 15
    while (reply := clinic.get("/readyz")).status_code == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    if reply.status_code != 200:  # it was not replaced yet
        asked, seconds = timed(partial(ask, clinic, timeout_s=30))
        if asked.status_code != 200:
            assert (asked.status_code, code_of(asked)) == (503, "no_model_replica")
            assert asked.headers["retry-after"] == "10"
            assert seconds < 3
            chat = {"model": "base", "messages": [{"role": "user", "content": "a rash"}]}
            chatted = clinic.post("/v1/chat/completions", json=chat)
            assert chatted.status_code in (200, 503)
    wait_until_ready(clinic)
    again = ask(clinic)
    assert again.status_code == 200, again.text


@pytest.mark.long
def test_a_change_of_the_base_never_mixes_versions(clinic: httpx.Client, models: Path) -> None:
    """An answer of more than SHORT tokens is allowed by new routers alone, so it is of the new
    model. Nothing is refused meanwhile but what the old version does not allow."""
    from ray import serve

    stop = threading.Event()
    replies: list[httpx.Response] = []

    def keep_asking(tokens: int) -> None:
        while not stop.is_set():
            replies.append(ask(clinic, max_tokens=tokens))

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(keep_asking, tokens) for tokens in (LONG, 16, LONG, 16, LONG, 16)]
        try:
            time.sleep(1)
            serve.run(application(models, NEW, LONG), name=APP, route_prefix=f"/{APP}")
            time.sleep(3)
        finally:
            stop.set()
        for future in asking:
            future.result()
    counts: dict[str, int] = {}
    for reply in replies:
        body = reply.json()
        if reply.status_code == 200:
            what = body["answer"].rstrip(".\0")
            if body["usage"]["completion_tokens"] and reply.request.content.count(b"40"):
                assert what == NEW, "a new router asked an old model"
        else:
            what = body["error"]["code"]
        counts[what] = counts.get(what, 0) + 1
    assert counts[OLD] > 5
    assert counts[NEW] > 5
    assert set(counts) == {OLD, NEW, "invalid_value"}, counts
    assert ask(clinic, max_tokens=LONG).json()["answer"].startswith(NEW)


@pytest.mark.slow
def test_a_wrong_letter_in_the_base_leaves_what_serves(
    serve_url: str, tiny_catalogs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """As `serve deploy` and `--apply` send it: the builder refuses it, and the rest goes on."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    base, catalog = tiny_catalogs["llama"]

    def deploy(base_model: str) -> None:
        engine = {"max_rows": 2, "max_input_tokens": 64, "max_output_tokens": 32}
        args = {
            "base_model": base_model,
            "adapters": str(catalog),
            "state_dir": str(tmp_path / "state"),
            "device": "cpu",
            "engine": {**engine, "default_output_tokens": 8, "cpu_threads": 1},
        }
        app = {"name": "declared", "route_prefix": "/declared", "args": args}
        content = {"applications": [{**app, "import_path": "deployments.app:build"}]}
        config = ServeDeploySchema.model_validate(content)
        _get_global_client().deploy_apps(config, _blocking=False)

    def status() -> Any:
        return serve.status().applications["declared"]

    try:
        deploy(str(base))
        with httpx.Client(base_url=f"{serve_url}/declared", timeout=60) as client:
            deadline = time.monotonic() + 120
            while status().status != "RUNNING":
                assert time.monotonic() < deadline, status().message
                time.sleep(0.3)
            wait_until_ready(client)
            pids = {a["replica"] for a in [client.get("/readyz").json()]}
            wrong = "smollm2-135m-instrct"
            deploy(wrong)
            deadline = time.monotonic() + 60
            while status().status != "DEPLOY_FAILED" or wrong not in status().message:
                assert time.monotonic() < deadline, status()
                time.sleep(0.2)
                assert client.post("/ask", json={"question": "a rash"}).status_code == 200
            assert f"base_model: '{wrong}'" in status().message
            assert {client.get("/readyz").json()["replica"]} == pids
            deploy(str(base))
            deadline = time.monotonic() + 60
            while status().status != "RUNNING":
                assert time.monotonic() < deadline, status()
                time.sleep(0.2)
            assert client.post("/ask", json={"question": "a rash"}).status_code == 200
    finally:
        serve.delete("declared")


def test_draining_finishes_what_runs_and_refuses_the_rest(clinic: httpx.Client) -> None:
    """The last of this file: these routers let nobody in any more."""
    from ray import serve

    router = serve.get_deployment_handle("Router", APP)
    router.broadcast("in_progress").results()
    with ThreadPoolExecutor(48) as pool:  # six rounds of the rows
        running = [pool.submit(partial(ask, clinic, stream=number % 2 > 0)) for number in range(48)]
        deadline = time.monotonic() + 30
        while sum(r["num_running"] for r in router.broadcast("in_progress").results()) < 48:
            assert time.monotonic() < deadline
        assert router.broadcast("drain").results()[0]["num_running"] > 0
        refused = ask(clinic)
        assert (refused.status_code, code_of(refused)) == (503, "draining")
        assert refused.headers["retry-after"] == "10"
        ready = clinic.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
        assert "draining" in ready.json()["cause"]
        assert clinic.get("/healthz").status_code == 200
        answered = [future.result() for future in running]
    assert [reply.status_code for reply in answered] == [200] * 48
    assert all("done" in r.text or r.json()["finish_reason"] == "stop" for r in answered)
    assert not any("error" in r.text for r in answered)
    assert [r["num_running"] for r in router.broadcast("drain").results()] == [0]
