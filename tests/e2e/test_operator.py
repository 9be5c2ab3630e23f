"""Two replicas of each on real Serve, under a route prefix: the page, the operator's report, and
answers from a shelf, which every router quotes and follows."""

import dataclasses
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from deployments.engine.decoder import RowSink
from deployments.engine.request import Request
from deployments.model.loading import LoadedModel
from deployments.settings import Settings, parse_settings
from references.default_shelf import open_shelf
from references.quote import quote
from references.shelf import Shelf
from tests.e2e.conftest import Deploy
from tests.e2e.stand_in import StandInDecoder, encode
from tests.references.passages import ALL, ECZEMA

NUM_QUESTIONS = 6
ANSWER = b"rest"
QUESTION = "What is eczema?"
CHANGED = dataclasses.replace(ECZEMA, text="Eczema, as the next edition has it, is a rash.")


class SpellingDecoder(StandInDecoder):
    """Spells ANSWER; `device` names its process, so that the test can freeze one of them."""

    def __init__(self) -> None:
        super().__init__(f"process:{os.getpid()}")

    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        for token in (*ANSWER, 0):
            for row in range(len(group)):
                sink.push(row, token)


def load_stand_in(settings: Settings, device: str) -> LoadedModel:
    return LoadedModel("stand-in", SpellingDecoder(), encode)


def wait_for_report(client: httpx.Client, num_replicas: int) -> dict[str, Any]:
    """The report, once this many replicas of each kind have answered."""
    deadline = time.monotonic() + 60
    while True:
        report: dict[str, Any] = client.get("/v1/operator").json()
        entries = (report["models"], report["routers"])
        if all(len([e for e in some if "problem" not in e]) == num_replicas for some in entries):
            return report
        if time.monotonic() > deadline:
            pytest.fail(f"not {num_replicas} replicas of each after 60 s: {report}")
        time.sleep(0.5)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Of the routers' settings; no file is there yet."""
    return open_shelf(tmp_path_factory.mktemp("shelf") / "shelf.db")


@pytest.fixture(scope="module")
def clinic(deploy: Deploy, shelf: Shelf) -> Iterator[httpx.Client]:
    from deployments.app import build_application

    settings = parse_settings(
        {
            "device": "auto",
            "auth": {"open_admin": True},
            "router": {"replicas": 2},
            "model_replicas": {"min": 2, "max": 2},
            "engine": {"max_rows": 2, "max_input_tokens": 16},
            "references": {"path": str(shelf.path)},
        }
    )
    with deploy(build_application(settings, load=load_stand_in), "operator") as client:
        yield client


def test_the_report_covers_every_replica_and_names_a_silent_one(clinic: httpx.Client) -> None:
    page = clinic.get("/")
    assert "<title>Polyclinic</title>" in page.text
    assert clinic.get("/static/app.js").status_code == 200
    before = wait_for_report(clinic, 2)
    for _ in range(NUM_QUESTIONS):
        reply = clinic.post("/v1/completions", json={"model": "base", "prompt": "What is it?"})
        assert reply.json()["choices"][0]["text"] == ANSWER.decode()
    report = wait_for_report(clinic, 2)
    total = report["all_routers"]
    assert total["num_requests"] == NUM_QUESTIONS
    assert sum(router["num_requests"] for router in report["routers"]) == NUM_QUESTIONS
    assert [r["outcome"] for r in total["requests"]] == ["stop"]
    assert total["first_token_ms"]["n"] == NUM_QUESTIONS
    assert total["tokens_per_s"] > 0
    for kind in ("models", "routers"):
        names = [entry["replica"] for entry in report[kind]]
        assert names == sorted(set(names)) == [entry["replica"] for entry in before[kind]]
    check_a_frozen_replica(clinic, report["models"])


def check_a_frozen_replica(client: httpx.Client, models: list[dict[str, Any]]) -> None:
    frozen, well = models
    pid = int(frozen["device"].split(":")[1])
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        report = client.get("/v1/operator").json()
        assert time.monotonic() - started < 4
    finally:
        os.kill(pid, signal.SIGCONT)
    problems = {model["replica"]: model.get("problem") for model in report["models"]}
    # Each router replica knows the names that it has seen itself; this one may not have been asked.
    assert problems in (
        {frozen["replica"]: "no_answer", well["replica"]: None},
        {None: "no_answer", well["replica"]: None},
    )


def asked(client: httpx.Client, grounding: str) -> dict[str, Any]:
    """The choice and its passages. The stand-in has no adapters: the base model is asked."""
    body = {"model": "base", "prompt": QUESTION, "grounding": grounding}
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    found = reply.json()
    return {"answer": found["choices"][0]["text"], "usage": found["usage"], **found["polyclinic"]}


def test_every_router_replica_answers_from_the_shelf_and_follows_it(
    clinic: httpx.Client, shelf: Shelf
) -> None:
    assert clinic.get("/readyz").json()["references"]["mode"] == "off"
    refused = clinic.post("/ask", json={"question": QUESTION, "grounding": "quote"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "no_reference_shelf"
    shelf.add(ALL)
    answers = [asked(clinic, "quote") for _ in range(12)]  # of both replicas
    assert all(answer["citations"][0]["text"] == ECZEMA.text for answer in answers)
    assert answers[0]["answer"].startswith(quote([ECZEMA]))
    assert all(answer["answer"] == answers[0]["answer"] for answer in answers)
    body = asked(clinic, "cite")  # the stand-in's word is in no passage
    assert (body["answer"], body["notices"]) == (answers[0]["answer"], ["ungrounded"])
    assert body["usage"]["completion_tokens"] > 0
    assert asked(clinic, "off")["answer"] == ANSWER.decode()
    version = shelf.replace([CHANGED])
    time.sleep(0.01)
    texts = {asked(clinic, "quote")["citations"][0]["text"] for _ in range(12)}
    assert texts == {CHANGED.text}
    found = clinic.get("/v1/references/search", params={"q": QUESTION}).json()
    assert (found["version"], found["passages"][0]["text"]) == (version, CHANGED.text)
