"""The engine's process of the only replica is killed: answers end, and a new replica takes over."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.conftest import Deploy

ENGINE = "deployments.engine_process.main"
REPLACED_S = 60  # most of it is the import of torch, on two busy cores


@pytest.fixture(scope="module")
def clinic(
    tiny_catalogs: dict[str, tuple[Path, Path]], deploy: Deploy, tmp_path_factory: Any
) -> Iterator[httpx.Client]:
    from deployments.app import build_application
    from deployments.settings import parse_settings

    base, catalog = tiny_catalogs["llama"]
    settings = parse_settings(
        {
            "base_model": str(base),
            "adapters": str(catalog),
            "state_dir": str(tmp_path_factory.mktemp("state")),
            "device": "cpu",
            "engine": {"dtype": "float32", "max_input_tokens": 200, "max_output_tokens": 300},
        }
    )
    with deploy(build_application(settings), "heartless") as client:
        yield client


def engines(base: str) -> set[int]:
    """Process ids of the engines whose replica is of this application."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if ENGINE in (process.info["cmdline"] or []):
            parent = process.parent()
            if parent is not None and base in " ".join(parent.cmdline()):
                found.add(process.pid)
    return found


def test_a_killed_engine_ends_its_answers_and_is_replaced(clinic: httpx.Client) -> None:
    [victim] = engines("heartless")
    body = {
        "model": "derm",
        "messages": [{"role": "user", "content": "What is eczema?"}],
        "max_tokens": 300,
        "min_tokens": 300,
        "stream": True,
    }
    chunks: list[dict[str, Any]] = []
    with clinic.stream("POST", "/v1/chat/completions", json=body) as reply:
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                chunks.append(json.loads(line[len("data: ") :]))
                if len(chunks) == 3:
                    os.kill(victim, signal.SIGKILL)
    errors = [chunk["error"]["code"] for chunk in chunks if "error" in chunk]
    assert errors == ["engine_stopped"], "exactly one terminal event"

    whole = body | {"stream": False, "max_tokens": 5, "min_tokens": 5}
    deadline = time.monotonic() + REPLACED_S
    while (answer := clinic.post("/v1/chat/completions", json=whole)).status_code != 200:
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert time.monotonic() < deadline, "no replica took over"
        time.sleep(0.3)
    [engine] = engines("heartless")
    assert engine != victim
    assert not psutil.pid_exists(victim)
