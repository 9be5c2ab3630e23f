"""Gauges that are measured now and then."""

import os
import threading
from typing import Any

import pytest
from ray.util.metrics import Metric

from deployments.observe.sampling import Sampler


def test_memory_is_measured_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, float]] = []
    two = threading.Event()

    def record(self: Any, value: float, tags: dict[str, str]) -> None:
        measured.append((tags["process"], value))
        if len(measured) >= 2:
            two.set()

    monkeypatch.setattr(Metric, "_record", record)
    calls = iter([ValueError("once")])

    def sample() -> None:
        error = next(calls, None)
        if error is not None:
            raise error

    sampler = Sampler({"router": os.getpid()}, sample, period_s=0.01)
    try:
        assert two.wait(5)
    finally:
        sampler.stop()
    assert {name for name, _ in measured} == {"router"}
    assert all(10 * 2**20 < value < 2**40 for _, value in measured)
