"""How many replicas the load needs, as Serve's controller asks."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve.config import AutoscalingConfig

from deployments.model.scaling import ROWS, by_rows


def context(rows: dict[str, float], waiting: float, *, replicas: int, target: int = 4) -> Any:
    return SimpleNamespace(
        current_num_replicas=replicas,
        target_num_replicas=1,
        aggregated_metrics={ROWS: rows} if rows else {},
        total_queued_requests=waiting,
        total_num_requests=999,  # bare calls in progress do not count
        config=SimpleNamespace(get_target_ongoing_requests=lambda: target),
    )


@pytest.mark.parametrize(
    ("rows", "waiting", "replicas", "wanted"),
    [
        ({"a": 4}, 0, 1, 1.0),
        ({"a": 4}, 2, 1, 1.5),
        ({"a": 8, "b": 0}, 0, 2, 2.0),
        ({"a": 1, "b": 1}, 0, 2, 0.5),
        ({"a": 0}, 0, 1, 0.0),
        ({}, 0, 1, 0.0),
        ({}, 12, 0, 1),  # none runs: Serve's own start for the first question
    ],
)
def test_rows_in_use_and_waiting_over_the_target(
    rows: dict[str, float], waiting: float, replicas: int, wanted: float
) -> None:
    assert by_rows(context(rows, waiting, replicas=replicas)) == (wanted, {})


def test_the_controller_gets_it_without_our_code(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    config = AutoscalingConfig(
        min_replicas=0,
        initial_replicas=1,
        max_replicas=2,
        policy={"policy_function": "deployments.model.scaling:by_rows"},
    )
    pickled = config.policy.get_serialized_policy_def()
    assert pickled is not None
    for name in [name for name in sys.modules if name.split(".")[0] == "deployments"]:
        monkeypatch.setitem(sys.modules, name, None)
    found = cloudpickle.loads(pickled)
    assert found(context({"a": 8}, 0, replicas=1)) == (2.0, {})
