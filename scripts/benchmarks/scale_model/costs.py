"""Costs of one clinic, read from the result files of docs/benchmarks and, where said, its pages."""

import bisect
import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

# docs/serving_path.md, "The budget, hop by hop"; not in a result file.
ROUTER_TOKEN_S = 49e-6  # of a router replica's process, for each token
ACTOR_TOKEN_S = 7e-6  # of a model replica's process, for each token
# Callbacks of a router's event loop from a chat request's scope to its call of the model, counted
# in process (Handle._run); between two of them other requests have their turn.
ROUTER_TURNS = 10
_P99 = NormalDist().inv_cdf(0.99)
PROMPTS_TOGETHER = 4  # that a GPU reads in the time of one (deployments/engine/model_runner.py)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds.

    Attributes:
        steps: (rows, seconds of a decoding step), ascending.
        prefill: of up to PROMPTS_TOGETHER short prompts.
        path: client, HTTP proxy and network, both ways, for the first token; path_spread: the
            standard deviation of its logarithm.
        router_call: of a router replica, for a question; classify: on top, where it classifies.
        actor_call: of a model replica's process, before an answer.
        install, read: of an adapter, from main memory to the device, and from its files.
        adapter_bytes: of one adapter.
        router_token, actor_token: of the two processes, for each token.
    """

    steps: tuple[tuple[int, float], ...]
    prefill: float
    path: float
    path_spread: float
    router_call: float
    classify: float
    actor_call: float
    install: float
    read: float
    adapter_bytes: int
    router_token: float = ROUTER_TOKEN_S
    actor_token: float = ACTOR_TOKEN_S

    def step(self, rows: int) -> float:
        """Return the seconds of a step, between the measured ones or along the last two."""
        at = min(max(bisect.bisect_left(self.steps, (rows, 0.0)), 1), len(self.steps) - 1)
        (low, low_s), (high, high_s) = self.steps[at - 1 : at + 1]
        return low_s + (high_s - low_s) * (rows - low) / (high - low)

    def prompts(self, num: int) -> float:
        """Return the seconds in which an engine reads `num` short prompts."""
        return math.ceil(num / PROMPTS_TOGETHER) * self.prefill


def read_costs(serving: Path, saturated: Path, gateway: Path, churn: Path) -> Costs:
    """Derive the costs from result files of `benchmark serve` with its engine, the same at so many
    streams that nothing more comes out, `benchmark gateway`, and `benchmark churn`.

    Raises:
        OSError, ValueError, KeyError, IndexError: a file is missing, or not of that benchmark.
    """
    engine, one_gpu = _json(serving)["engine"], _json(serving)["one_gpu"]
    most, over = _json(saturated)["streams"], _json(gateway)["over_chain"]
    load = _json(churn)
    tokens = int(most["settings"]["output_tokens"])
    answers_per_s = max(run["tokens_per_s"] for run in most["runs"]) / tokens
    prefill = float(engine["sides"]["engine_one_stream"]["first_token_p50_s"])
    router_call = float(over["gateway"]["added_p50_ms"]) / 1000
    (alone,) = [run for run in one_gpu["runs"] if run["streams"] == 1]
    first = alone["first_token_s"]
    # What one model replica's process needs for an answer when it is all that limits.
    actor_call = 1 / answers_per_s - tokens * ACTOR_TOKEN_S
    path = first["median"] - (prefill + router_call + actor_call)
    return Costs(
        steps=tuple((int(s["rows"]), s["step_ms"] / 1000) for s in engine["steps"]),
        prefill=prefill,
        path=path,
        path_spread=math.log1p((first["p99"] - first["median"]) / path) / _P99,
        router_call=router_call,
        classify=float(over["classified"]["added_p50_ms"]) / 1000 - router_call,
        actor_call=actor_call,
        install=load["load"]["install_ms"]["median"] / 1000,
        read=load["load"]["read_ms"]["median"] / 1000,
        adapter_bytes=int(load["adapter_bytes"]),
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text())
