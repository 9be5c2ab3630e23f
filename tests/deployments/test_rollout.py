"""Upgrades: whether a new version may start beside the old one, and which versions fit together."""

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from deployments import app
from deployments.settings import parse_settings


@pytest.mark.parametrize(
    ("free", "num_cpus", "num_gpus", "num_bytes", "expected"),
    [
        ({"CPU": 4.0}, 1.2, 0, 10, True),
        ({"CPU": 1.0}, 1.2, 0, 10, False),
        ({}, 1.2, 0, 0, False),
        ({"CPU": 4.0}, 1.2, 1, 10, False),
        ({"CPU": 4.0, "GPU": 1.0}, 1.2, 1, 10**12, True),
        ({"CPU": 4.0, "GPU": 0.5}, 1.2, 1, 10, False),
        ({"CPU": 4.0}, 1.2, 0, 400, False),
        ({"CPU": 4.0}, 1.2, 0, 300, True),
    ],
)
def test_there_is_room_only_for_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
    free: dict[str, float],
    num_cpus: float,
    num_gpus: int,
    num_bytes: int,
    expected: bool,
) -> None:
    """Of 1,000 bytes of memory a model on the CPU may take a third as files."""
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert app.has_room(num_cpus, num_gpus, num_bytes) is expected


@pytest.mark.parametrize(
    ("changed", "fits"),
    [
        ({}, True),
        ({"cors_origins": ["https://a.example"]}, True),
        ({"allowed_hosts": ["a.example"]}, True),
        ({"auth": {"mode": "keys"}}, True),
        ({"router": {"replicas": 3}}, True),
        ({"model_replicas": {"min": 2, "max": 3}}, True),
        ({"adapter_sources": {"schemes": ["hf"]}}, True),
        ({"base_model": "org/other"}, False),
        ({"quantization": "int8"}, False),
        ({"adapters": "/srv/other"}, False),
        ({"state_dir": "/srv/other"}, False),
        ({"engine": {"max_output_tokens": 600}}, False),
    ],
)
def test_only_what_both_sides_must_share_keeps_versions_apart(
    changed: dict[str, Any], fits: bool
) -> None:
    before, after = parse_settings({}), parse_settings(changed)
    assert (before.model_config_id == after.model_config_id) is fits
