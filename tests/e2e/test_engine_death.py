"""The engine's process of the only replica is killed: answers end, and a new replica takes over."""

import json
import os
import signal
import time
from typing import Any

import httpx
import psutil
import pytest

ENGINE = "deployments.engine_process.main"
REPLACED_S = 60  # most of it is the import of torch, on two busy cores


def engines(base: str) -> set[int]:
    """Process ids of the engines whose replica is of this application."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if ENGINE in (process.info["cmdline"] or []):
            parent = process.parent()
            if parent is not None and base in " ".join(parent.cmdline()):
                found.add(process.pid)
    return found


@pytest.mark.slow
def test_a_killed_engine_ends_its_answers_and_is_replaced(tiny_clinic: httpx.Client) -> None:
    [victim] = engines(":tiny:")
    body = {
        "model": "derm",
        "messages": [{"role": "user", "content": "What is eczema?"}],
        "max_tokens": 300,
        "min_tokens": 300,
        "stream": True,
    }
    chunks: list[dict[str, Any]] = []
    with tiny_clinic.stream("POST", "/v1/chat/completions", json=body) as reply:
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
    while (answer := tiny_clinic.post("/v1/chat/completions", json=whole)).status_code != 200:
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["retry-after"]) > 0
        assert time.monotonic() < deadline, "no replica took over"
        time.sleep(0.3)
    [engine] = engines(":tiny:")
    assert engine != victim
    assert not psutil.pid_exists(victim)
