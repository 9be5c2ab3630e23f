"""One GPU a replica, and 1 -> 2 -> 1 replicas under load, on Ray's simulated GPUs.

The decoder is a stand-in that sleeps: what is tested is the wiring, not a model.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from deployments.engine.decoder import RowSink
from deployments.engine.request import Request
from deployments.model.loading import LoadedModel
from deployments.settings import Settings, parse_settings
from tests.e2e.conftest import Deploy
from tests.e2e.stand_in import StandInDecoder, encode

STEP_S = 0.05
NUM_TOKENS = 8


class SleepingDecoder(StandInDecoder):
    """Every token takes STEP_S; the text names the GPU that Ray gave to this replica."""

    def __init__(self, device: str) -> None:
        import os

        super().__init__(f"{device}:{os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}")

    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        text = self._device.encode()
        for step in range(NUM_TOKENS + 1):
            time.sleep(STEP_S)
            for row in range(len(group)):
                sink.push(row, text[step] if step < min(NUM_TOKENS, len(text)) else 0)


class SlowDecoder(SleepingDecoder):
    """An answer takes 6 s."""

    def generate(self, group: Sequence[Request], sink: RowSink) -> None:
        time.sleep(6)
        super().generate(group, sink)


def load_slow(settings: Settings, device: str) -> LoadedModel:
    return LoadedModel("stand-in", SlowDecoder(device), encode)


def load_stand_in(settings: Settings, device: str) -> LoadedModel:
    return LoadedModel("stand-in", SleepingDecoder(device), encode)


def running_replicas(name: str) -> int:
    from ray import serve

    deployment = serve.status().applications[name].deployments["Model"]
    return deployment.replica_states.get("RUNNING", 0)


def wait_for_replicas(name: str, wanted: int, timeout_s: float) -> float:
    started = time.monotonic()
    while running_replicas(name) != wanted:
        if time.monotonic() - started > timeout_s:
            pytest.fail(f"{running_replicas(name)} replicas after {timeout_s} s, wanted {wanted}")
        time.sleep(0.3)
    return time.monotonic() - started


@pytest.mark.long
def test_one_to_two_to_one_under_load_without_a_failed_request(deploy: Deploy) -> None:
    from deployments.app import build_application

    settings = parse_settings(
        {
            "device": "auto",
            "model_replicas": {
                "min": 1,
                "max": 2,
                "target": 2,
                "upscale_delay_s": 1,
                "downscale_delay_s": 4,
            },
            "engine": {"max_rows": 2},
        }
    )
    app = build_application(settings, load=load_stand_in)
    with deploy(app, "scaling") as client:
        assert client.get("/readyz").json()["device"].startswith("cuda:")
        outcomes: Counter[int] = Counter()
        devices: set[str] = set()
        stop = threading.Event()

        def ask_on() -> None:
            while not stop.is_set():
                body = {"prompt": "a rash", "model": "base"}
                response = httpx.post(f"{client.base_url}v1/completions", json=body, timeout=60)
                outcomes[response.status_code] += 1
                if response.status_code == 200:
                    devices.add(response.json()["choices"][0]["text"])

        with ThreadPoolExecutor(12) as pool:
            threads = [pool.submit(ask_on) for _ in range(12)]
            try:
                wait_for_replicas("scaling", 2, timeout_s=60)
                time.sleep(3)
            finally:
                stop.set()
        assert all(thread.exception() is None for thread in threads)
        # light load goes on while the second replica drains
        stop.clear()
        with ThreadPoolExecutor(1) as pool:
            light = pool.submit(ask_on)
            try:
                wait_for_replicas("scaling", 1, timeout_s=90)
            finally:
                stop.set()
        assert light.exception() is None
    assert set(outcomes) == {200}, outcomes
    assert devices == {"cuda:0", "cuda:1"}


def ask_for_words(client: httpx.Client, *, stream: bool) -> httpx.Response:
    body = {"prompt": "a rash", "model": "base", "stream": stream}
    return httpx.post(f"{client.base_url}v1/completions", json=body, timeout=120)


@pytest.mark.long
def test_to_zero_and_the_first_questions_wait_for_a_replica(deploy: Deploy) -> None:
    from deployments.app import build_application

    replicas = {"min": 0, "max": 1, "upscale_delay_s": 1, "downscale_delay_s": 2}
    settings = parse_settings({"device": "cuda", "model_replicas": replicas})
    app = build_application(settings, load=load_stand_in)
    with deploy(app, "sleeper") as client:
        first = ask_for_words(client, stream=False)
        assert first.status_code == 200, first.text
        for stream in (True, False):
            wait_for_replicas("sleeper", 0, timeout_s=60)
            time.sleep(2)  # the router has noticed
            asleep = client.get("/readyz")
            assert asleep.status_code == 200, asleep.text
            assert asleep.json()["asleep"] is True
            with ThreadPoolExecutor(3) as pool:
                asked = [pool.submit(ask_for_words, client, stream=stream) for _ in range(3)]
                answers = [future.result() for future in asked]
            assert [answer.status_code for answer in answers] == [200] * 3
        parts = client.get("/readyz").json()["start"]
        assert {"process_s", "base_s", "adapters_s", "warm_up_s"} < set(parts)


@pytest.mark.long
def test_a_long_answer_outlives_its_replica_s_retirement(deploy: Deploy) -> None:
    """Two replicas under load, then one: the answers in progress on both run to their end."""
    from deployments.app import build_application

    replicas = {"min": 1, "max": 2, "target": 1, "upscale_delay_s": 1, "downscale_delay_s": 1}
    settings = parse_settings(
        {"device": "cuda", "model_replicas": replicas, "engine": {"max_rows": 2}}
    )
    app = build_application(settings, load=load_slow)
    with deploy(app, "retiring") as client, ThreadPoolExecutor(8) as pool:
        load = [pool.submit(ask_for_words, client, stream=False) for _ in range(8)]
        started = time.monotonic()
        wait_for_replicas("retiring", 2, timeout_s=60)
        assert time.monotonic() - started < 10 + 20  # and a process starts on busy cores
        assert {future.result().status_code for future in load} == {200}
        last = [pool.submit(ask_for_words, client, stream=True) for _ in range(2)]
        wait_for_replicas("retiring", 1, timeout_s=60)
        for future in last:
            text = future.result().text
            assert "[DONE]" in text
            assert '"error"' not in text


def test_without_gpus_in_the_settings_replicas_are_clamped(caplog: Any) -> None:
    from deployments.app import choose_device, clamp_replicas

    settings = parse_settings({"device": "cpu", "model_replicas": {"min": 2, "max": 3}})
    clamped = clamp_replicas(settings.model_replicas, choose_device(settings))
    assert (clamped.min, clamped.max) == (1, 1)
    assert "model_replicas {min: 2, max: 3} is clamped to 1" in caplog.text
    assert clamp_replicas(settings.model_replicas, "cuda") == settings.model_replicas
