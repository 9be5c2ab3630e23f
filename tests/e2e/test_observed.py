"""What an operator sees of a running clinic: metrics in Prometheus, JSON logs, traces.

A cluster of its own, since traces and the kind of log are set when Ray starts. One small random
Llama with an engine process, three adapters for two places, and a reference shelf.
"""

import asyncio
import json
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import pytest_asyncio

from references.default_shelf import open_shelf
from scripts.benchmarks.over_http.serve_process import serving
from scripts.chaos_runs.clinic import write_clinic
from tests.e2e.conftest import ROOT, free_port
from tests.e2e.otlp_receiver import ReceivedSpan, Receiver, receiving
from tests.references.passages import ALL
from tests.test_metrics_page import documented_metrics

pytestmark = [pytest.mark.long, pytest.mark.asyncio(loop_scope="module")]

SECRET = "zebrafish"  # stands for a patient's words: it may be in no log, metric or trace
QUESTION = f"What is eczema of a {SECRET}?"
PHASES = ("queue", "prefill", "decode")
WAIT_S = 60


@dataclass(frozen=True, slots=True)
class Observed:
    client: aiohttp.ClientSession
    url: str
    traces: Receiver
    logs: Path
    metrics_url: str

    async def ask(self, request_id: str, path: str = "/ask", **body: Any) -> tuple[int, str]:
        headers = {"x-request-id": request_id, **body.pop("headers", {})}
        async with self.client.post(self.url + path, json=body, headers=headers) as reply:
            return reply.status, await reply.text()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def clinic(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    shelf = folder / "shelf.db"
    open_shelf(shelf).add(ALL)
    application = write_clinic(folder, replicas=1, routers=1)
    application["args"]["references"] = {"path": str(shelf)}
    application["args"]["engine"] |= {
        "max_adapters": 2,
        "max_input_tokens": 600,
        "max_output_tokens": 400,
    }
    for deployment in ("Router", "Model"):
        configs = {d["name"]: d for d in application["deployments"]}
        if deployment not in configs:
            application["deployments"].append(configs.setdefault(deployment, {"name": deployment}))
        configs[deployment].setdefault("user_config", {})["log_requests"] = True
    with receiving() as (traces, endpoint), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "300")
        patch.setenv("RAY_metrics_report_interval_ms", "3000")
        port, logs = free_port(), folder / "logs"
        sections = {
            "logging_config": {
                "encoding": "JSON",
                "logs_dir": str(logs),
                "log_level": "WARNING",
                "enable_access_log": False,
            }
        }
        running = serving(folder, [application], _is_ready, metrics_port=port, sections=sections)
        async with running as (client, url, _):
            found = Observed(client, url, traces, logs, f"127.0.0.1:{port}")
            await _questions_of_every_kind(found)
            yield found


async def _is_ready(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(f"{url}/readyz") as reply:
            return reply.status == 200
    except aiohttp.ClientError:
        return False


async def _questions_of_every_kind(clinic: Observed, ids: str = "") -> None:
    """Every metric has something to measure: routes, adapters that come and go, references."""
    for number in range(6):
        asked = {"question": QUESTION, "max_tokens": 16}
        assert (await clinic.ask(f"routed-{number}{ids}", **asked))[0] == 200
        adapted = {**asked, "specialty": f"a{number % 3}", "stream": bool(number % 2)}
        assert (await clinic.ask(f"adapted-{number}{ids}", **adapted))[0] == 200
    cited = {"question": "What is eczema?", "grounding": "cite", "max_tokens": 16}
    assert (await clinic.ask(f"cited{ids}", **cited))[0] == 200
    assert (await clinic.ask(f"refused{ids}", question=SECRET, max_tokens=0))[0] == 400


# --- metrics ---


@pytest.fixture(scope="module")
def prometheus(
    clinic: Observed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A Prometheus with our own configuration and alerts, which has scraped the clinic."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no `prometheus` here: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copytree(ROOT / "deploy" / "prometheus", folder, dirs_exist_ok=True)
    config = folder / "prometheus.yml"
    config.write_text(re.sub(r"_interval: \S+", "_interval: 1s", config.read_text()))
    target = (folder / "targets" / "local.yml").read_text().replace("127.0.0.1:9464", "{}")
    (folder / "targets" / "local.yml").write_text(target.format(clinic.metrics_url))
    port = free_port()
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    process = subprocess.Popen(command)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            _wait_until_scraped(client)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_scraped(client: httpx.Client) -> None:
    """Rates need two samples of everything."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if answer(client, "min_over_time(count_over_time(up[1m])[10s:1s]) >= 12"):
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, "Prometheus has scraped nothing"
        time.sleep(0.5)


def answer(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    reply = client.get("/api/v1/query", params={"query": query}).json()
    assert reply["status"] == "success", f"{query}: {reply.get('error')}"
    found: list[dict[str, Any]] = reply["data"]["result"]
    return found


def names_of_ours(prometheus: httpx.Client) -> set[str]:
    names = prometheus.get("/api/v1/label/__name__/values").json()["data"]
    return {
        re.sub(r"_(bucket|count|sum)$", "", name).removeprefix("ray_")
        for name in names
        if name.startswith("ray_polyclinic_")
    }


async def test_prometheus_has_every_documented_series_and_no_other_of_ours(
    prometheus: httpx.Client,
) -> None:
    documented = documented_metrics()
    deadline = time.monotonic() + 20
    while (ours := names_of_ours(prometheus)) != set(documented):
        assert time.monotonic() < deadline, ours ^ set(documented)
        time.sleep(0.5)
    for name, metric in documented.items():
        suffix = "_count" if metric.kind == "histogram" else ""
        for series in answer(prometheus, f"ray_{name}{suffix}"):
            missing = {*metric.labels, "application", "deployment", "replica"} - set(
                series["metric"]
            )
            assert not missing, f"{name} lacks {missing}"


def panels() -> list[tuple[str, str]]:
    files = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
    assert files
    return [
        (panel["title"], target["expr"])
        for file in files
        for panel in json.loads(file.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


@pytest.mark.parametrize(("title", "query"), panels())
async def test_each_panel_shows_something(
    clinic: Observed, prometheus: httpx.Client, title: str, query: str
) -> None:
    concrete = query.replace("$__rate_interval", "1m").replace("$application", ".*")
    deadline = time.monotonic() + 20
    while True:
        values = [float(series["value"][1]) for series in answer(prometheus, concrete)]
        if any(value == value for value in values):  # a rate without a change gives NaN quantiles
            return
        assert time.monotonic() < deadline, f"{title}: {concrete} has no data: {values}"
        await _questions_of_every_kind(clinic, f"-{uuid.uuid4().hex}")


async def test_the_alerts_are_loaded_and_none_fires_in_peace(prometheus: httpx.Client) -> None:
    [group] = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}, group
    assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []


async def test_the_series_of_a_version_ends_with_it(
    clinic: Observed, prometheus: httpx.Client
) -> None:
    query = 'ray_polyclinic_version_answers{adapter="a2"}'
    assert answer(prometheus, query)
    url = f"{clinic.url}/v1/adapters/a2"
    async with clinic.client.patch(url, json={"state": "disabled"}) as reply:
        assert reply.status in (200, 202), await reply.text()
    deadline = time.monotonic() + 30
    while answer(prometheus, query):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.5)
    async with clinic.client.patch(url, json={"state": "active"}) as reply:
        assert reply.status in (200, 202), await reply.text()
    while not answer(prometheus, query):
        assert time.monotonic() < deadline + 30, "it has not come back"
        time.sleep(0.5)


async def test_no_word_of_a_question_is_in_a_metric(clinic: Observed) -> None:
    async with clinic.client.get(f"http://{clinic.metrics_url}/metrics") as reply:
        text = await reply.text()
    assert "ray_polyclinic_requests_total" in text
    assert SECRET not in text


# --- logs ---


def records(clinic: Observed, request_id: str) -> list[dict[str, Any]]:
    lines = [line for file in clinic.logs.glob("replica_*.log") for line in file.open()]
    parsed = [json.loads(line) for line in lines if line.strip()]
    return [record for record in parsed if record.get("request_id") == request_id]


async def test_one_id_is_followed_through_every_stage(clinic: Observed) -> None:
    reply = await clinic.ask("visit.7", question=QUESTION, specialty="a1", max_tokens=9)
    assert reply[0] == 200
    deadline = time.monotonic() + 10
    while len(found := records(clinic, "visit.7")) < 5 and time.monotonic() < deadline:
        time.sleep(0.2)
    events = {record.get("event"): record for record in found}
    assert events["http_request"]["path"] == "/ask"
    assert events["http_request"]["status"] == 200
    assert events["answer"]["outcome"] == events["generate"]["outcome"] == "length"
    assert events["generate"]["adapter"] == events["answer"]["adapter"] == "a1"
    assert events["generate"]["num_tokens"] == 9
    engine = [r["message"] for r in found if r["event"] == "engine"]
    assert [text.split(":")[0] for text in engine] == ["engine_step", "engine_end"]
    assert {record["deployment"] for record in found} == {"clinic_Router", "clinic_Model"}


async def test_a_refused_request_has_its_record(clinic: Observed) -> None:
    [record] = records(clinic, "refused")
    assert (record["status"], record["error"]) == (400, "invalid_value")


async def test_no_word_of_a_question_is_in_a_log_or_a_trace(clinic: Observed) -> None:
    texts = [file.read_bytes() for file in clinic.logs.iterdir()]
    assert any(b"http_request" in text for text in texts)
    assert clinic.traces.bodies
    for text in (*texts, *clinic.traces.bodies):
        assert SECRET.encode() not in text
        assert b"eczema" not in text


# --- traces ---


def check_parents(spans: dict[str, ReceivedSpan], root: str, parents: dict[str, str]) -> None:
    assert len({span.trace_id for span in spans.values()}) == 1
    for name, parent in parents.items():
        assert spans[name].parent_id == spans[parent].span_id, f"{name} is not below {parent}"
        assert spans[root].begins_ns <= spans[name].begins_ns <= spans[name].ends_ns


ANSWERED = {"answer": "POST /ask", "generate": "answer", **dict.fromkeys(PHASES, "generate")}


def complete(*names: str) -> Any:
    return lambda spans: set(names) <= set(spans)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_question_is_one_trace(clinic: Observed, stream: bool) -> None:
    request_id = f"traced-{stream}"
    client = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    if stream:
        client = client.replace("0af7", "1af7")
    asked = {"question": QUESTION, "max_tokens": 12, "stream": stream}
    reply = await clinic.ask(request_id, **asked, headers={"traceparent": client})
    assert reply[0] == 200
    spans = clinic.traces.wait_for(request_id, complete("POST /ask", "route", *ANSWERED))
    check_parents(spans, "POST /ask", {**ANSWERED, "route": "POST /ask"})
    root = spans["POST /ask"]
    assert (root.trace_id, root.parent_id) == tuple(client.split("-")[1:3])
    assert root.attributes["http.response.status_code"] == 200
    assert not any(span.is_error for span in spans.values())
    services = {name: span.service for name, span in spans.items()}
    assert services["route"] == services["answer"] == "polyclinic-router"
    assert services["generate"] == services["decode"] == "polyclinic-model"
    phases = [spans[name] for name in PHASES]
    for before, after in zip(phases, phases[1:], strict=False):
        assert before.ends_ns == after.begins_ns
    assert spans["generate"].attributes["polyclinic.num_tokens"] == 12


async def test_a_cold_adapter_shows_its_load(clinic: Observed) -> None:
    for number, adapter in enumerate(("a0", "a1", "a2", "a0")):
        asked = {"question": QUESTION, "specialty": adapter, "max_tokens": 4}
        assert (await clinic.ask(f"cold-{number}", **asked))[0] == 200
    spans = clinic.traces.wait_for("cold-3", complete("POST /ask", "adapter_load", *ANSWERED))
    check_parents(spans, "POST /ask", {**ANSWERED, "adapter_load": "generate"})
    assert spans["adapter_load"].ends_ns <= spans["queue"].begins_ns


async def test_references_are_searched_beside_the_route(clinic: Observed) -> None:
    spans = clinic.traces.wait_for("cited", complete("POST /ask", "retrieve", *ANSWERED))
    check_parents(spans, "POST /ask", {**ANSWERED, "retrieve": "POST /ask"})


async def test_a_refused_request_ends_its_span(clinic: Observed) -> None:
    spans = clinic.traces.wait_for("refused", complete("POST /ask"))
    assert set(spans) == {"POST /ask"}
    attributes = spans["POST /ask"].attributes
    assert attributes["http.response.status_code"] == 400
    assert attributes["error.type"] == "invalid_value"
    assert not spans["POST /ask"].is_error  # the client's mistake is not the server's


async def test_a_deadline_ends_its_spans_with_the_reason(clinic: Observed) -> None:
    asked = {"question": QUESTION, "max_tokens": 240, "timeout_s": 0.05}
    await clinic.ask("late", **asked)
    spans = clinic.traces.wait_for("late", complete("POST /ask", "answer", "generate"))
    assert spans["answer"].is_error
    assert spans["answer"].attributes["error.type"] == "timeout"
    assert spans["generate"].is_error


async def test_a_client_that_leaves_ends_its_spans(clinic: Observed) -> None:
    body = {"question": QUESTION, "max_tokens": 400, "stream": True}
    headers = {"x-request-id": "left"}
    beside = [clinic.ask(f"beside-{number}", **body) for number in range(7)]  # steps take longer
    others = asyncio.gather(*beside)
    async with clinic.client.post(f"{clinic.url}/ask", json=body, headers=headers) as reply:
        async for line in reply.content:
            if line.startswith(b"event: token"):
                break
    await others
    spans = clinic.traces.wait_for("left", complete("POST /ask", *ANSWERED))
    check_parents(spans, "POST /ask", ANSWERED)
    for name in ("answer", "generate", "decode"):
        assert spans[name].is_error, name
        assert spans[name].attributes["error.type"] == "cancelled"
    assert spans["POST /ask"].attributes["error.type"] == "client_left"


async def test_probes_have_no_trace(clinic: Observed) -> None:
    async with clinic.client.get(f"{clinic.url}/readyz", headers={"x-request-id": "probe"}) as r:
        assert r.status == 200
    await clinic.ask("after-the-probe", question=SECRET, max_tokens=0)
    clinic.traces.wait_for("after-the-probe", complete("POST /ask"))
    assert clinic.traces.of("probe") == {}
    assert {span.name for span in clinic.traces.spans if span.name.startswith("GET")} <= set()
