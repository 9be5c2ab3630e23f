"""A model replica is killed: before its answer began nobody notices, in mid-stream it is said.

The decoder is a stand-in that sleeps and says which process it is.
"""

import json
import os
import signal
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
from tests.e2e.conftest import Deploy
from tests.e2e.stand_in import StandInDecoder, encode

STEP_S = 0.1
NUM_STEPS = 14


class NamedDecoder(StandInDecoder):
    """Its text is its process id, a letter a step. `folder` shows which processes are at work."""

    def __init__(self, device: str, folder: Path) -> None:
        super().__init__(device)
        self._folder = folder

    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        (self._folder / str(os.getpid())).touch()
        text = f"{os.getpid()};".encode().ljust(NUM_STEPS, b".") + b"\0"
        for token in text:
            time.sleep(STEP_S)
            if all(sink.is_done(row) for row in range(len(group))):
                return
            for row in range(len(group)):
                sink.push(row, token)


def load_named(folder: Path, settings: Settings, device: str) -> LoadedModel:
    return LoadedModel("stand-in", NamedDecoder(device, folder), encode)


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("at-work")


@pytest.fixture(scope="module")
def clinic(deploy: Deploy, at_work: Path) -> Iterator[httpx.Client]:
    from deployments.app import build_application

    settings = parse_settings(
        {
            "device": "cuda",
            "model_replicas": {"min": 2, "max": 2},
            "engine": {"max_rows": 2, "default_output_tokens": 64},
        }
    )
    app = build_application(settings, load=partial(load_named, at_work))
    with deploy(app, "mortal") as client:
        yield client


@pytest.fixture(autouse=True)
def two_replicas(clinic: httpx.Client, at_work: Path) -> None:
    """Both replicas run, and nobody is at work."""
    from ray import serve

    deadline = time.monotonic() + 120
    while True:
        model = serve.status().applications["mortal"].deployments["Model"]
        if model.replica_states.get("RUNNING", 0) == 2 and len(model.replica_states) == 1:
            break
        assert time.monotonic() < deadline, model
        time.sleep(0.3)
    for file in at_work.iterdir():
        file.unlink()


def wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


def ask(clinic: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"question": "a red rash", "specialty": "psychiatry", **fields}
    return httpx.post(f"{clinic.base_url}ask", json=body, timeout=120)


def test_an_answer_that_has_not_begun_is_given_by_another_replica(
    clinic: httpx.Client, at_work: Path
) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, clinic) for _ in range(4)]
        victim = wait_for(lambda: [int(file.name) for file in at_work.iterdir()])[0]
        os.kill(victim, signal.SIGKILL)
        replies = [future.result() for future in asked]
    assert [reply.status_code for reply in replies] == [200] * 4, [r.text for r in replies]
    speakers = {reply.json()["answer"].split(";")[0] for reply in replies}
    assert str(victim) not in speakers
    assert speakers


def test_a_stream_that_breaks_says_so_and_the_others_go_on(
    clinic: httpx.Client, at_work: Path
) -> None:
    def stream(number: int) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
        body = {"question": "a red rash", "specialty": "psychiatry", "stream": True}
        headers = {"x-request-id": f"stream-{number}"}
        with httpx.stream(
            "POST", f"{clinic.base_url}ask", json=body, headers=headers, timeout=120
        ) as reply:
            assert reply.status_code == 200
            assert reply.headers.get_list("x-request-id") == [f"stream-{number}"]
            events: list[tuple[str, dict[str, Any]]] = []
            text = ""
            for line in reply.iter_lines():
                if line.startswith("event: "):
                    events.append((line.removeprefix("event: "), {}))
                elif line:
                    events[-1] = (events[-1][0], json.loads(line.removeprefix("data: ")))
                    text += events[-1][1].get("text", "")
                    if ";" in text and number == 0:
                        victim = int(text.split(";")[0])
                        if (at_work / str(victim)).exists():
                            (at_work / str(victim)).unlink()
                            os.kill(victim, signal.SIGKILL)
            return text.split(";")[0], events

    with ThreadPoolExecutor(6) as pool:  # one replica takes four: 2 * max_rows
        streams = list(pool.map(stream, range(6)))
    victim = streams[0][0]
    assert len({speaker for speaker, _ in streams}) >= 2, "all were on one replica"
    for number, (speaker, events) in enumerate(streams):
        names = [name for name, _ in events]
        assert sum(name in ("done", "error") for name in names) == 1
        if names[-1] == "done":  # on the other replica, or of a group before
            assert number > 0
            assert events[-2][1]["finish_reason"] == "stop"
            continue
        assert speaker == victim
        assert names[-2:] == ["answer", "error"]
        assert events[-2][1]["error"]["code"] == "replica_lost"
        assert events[-1][1]["error"]["request_id"] == f"stream-{number}"


def test_a_deadline_ends_an_answer_with_what_it_has(clinic: httpx.Client) -> None:
    """On the reference path too: the stand-in is a group decoder."""
    reply = ask(clinic, timeout_s=8 * STEP_S).json()
    assert reply["finish_reason"] == "timeout"
    assert 3 < reply["usage"]["completion_tokens"] <= 9
    too_short = ask(clinic, timeout_s=1e-6)
    assert (too_short.status_code, too_short.json()["error"]["code"]) == (408, "deadline_exceeded")
