"""Answers from a shelf on real Serve, two router replicas: quoted, and following its changes."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import httpx

from deployments.settings import parse_settings
from references.default_shelf import open_shelf
from references.quote import quote
from tests.e2e.conftest import Deploy
from tests.e2e.test_operator import ANSWER, load_stand_in
from tests.references.passages import ALL, ECZEMA

QUESTION = "What is eczema?"
CHANGED = dataclasses.replace(ECZEMA, text="Eczema, as the next edition has it, is a rash.")


def asked(client: httpx.Client, grounding: str) -> dict[str, Any]:
    """The choice and its passages. The stand-in has no adapters: the base model is asked."""
    body = {"model": "base", "prompt": QUESTION, "grounding": grounding}
    reply = client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    found = reply.json()
    return {"answer": found["choices"][0]["text"], "usage": found["usage"], **found["polyclinic"]}


def test_every_router_replica_answers_from_the_shelf_and_follows_it(
    deploy: Deploy, tmp_path: Path
) -> None:
    from deployments.app import build_application

    shelf = open_shelf(tmp_path / "shelf.db")
    settings = parse_settings(
        {
            "router": {"replicas": 2},
            "engine": {"max_rows": 2, "max_input_tokens": 16},
            "references": {"path": str(shelf.path)},
        }
    )
    with deploy(build_application(settings, load=load_stand_in), "grounding") as client:
        assert client.get("/readyz").json()["references"]["mode"] == "off"
        refused = client.post("/ask", json={"question": QUESTION, "grounding": "quote"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "no_reference_shelf"
        shelf.add(ALL)
        answers = [asked(client, "quote") for _ in range(12)]  # of both replicas
        assert all(answer["citations"][0]["text"] == ECZEMA.text for answer in answers)
        assert answers[0]["answer"].startswith(quote([ECZEMA]))
        assert all(answer["answer"] == answers[0]["answer"] for answer in answers)
        body = asked(client, "cite")  # the stand-in's word is in no passage
        assert (body["answer"], body["notices"]) == (answers[0]["answer"], ["ungrounded"])
        assert body["usage"]["completion_tokens"] > 0
        assert asked(client, "off")["answer"] == ANSWER.decode()
        version = shelf.replace([CHANGED])
        time.sleep(0.01)
        texts = {asked(client, "quote")["citations"][0]["text"] for _ in range(12)}
        assert texts == {CHANGED.text}
        found = client.get("/v1/references/search", params={"q": QUESTION}).json()
        assert (found["version"], found["passages"][0]["text"]) == (version, CHANGED.text)
