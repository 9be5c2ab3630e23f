"""GET /v1/operator: what every replica holds and does, put together by the replica that is asked.

A replica that does not answer in time is listed with the problem in words; it hides nobody else.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.ingress.traffic import (
    BUCKETS_PER_DOUBLING,
    LATENCY_WINDOW_S,
    NUM_CONFIDENCE_BINS,
    TOKENS_WINDOW_S,
    Buckets,
    Snapshot,
    added,
)
from deployments.replica_set import ReplicaSet, own_replicas

REPLICA_TIMEOUT_S = 2.0


class ClusterReport:
    """Asks the replicas of both deployments.

    Args:
        model: handle of the model deployment, whose replicas answer `info`.
    """

    def __init__(self, model: DeploymentHandle) -> None:
        self._models = NamedReplicas(ReplicaSet(model))
        self._routers: NamedReplicas | None = None

    async def report(self) -> dict[str, Any]:
        self._routers = self._routers or NamedReplicas(own_replicas())
        models, routers = await asyncio.gather(
            self._models.call("info"), self._routers.call("traffic")
        )
        return assemble(models, routers, generated_at=time.time())


def assemble(
    models: list[dict[str, Any]], routers: list[dict[str, Any]], *, generated_at: float
) -> dict[str, Any]:
    """Return the report. An entry with `problem` (a code) and `message` is a replica that did not
    answer.

    Args:
        models: what `ModelReplica.info` returned, one for each replica.
        routers: what `RouterReplica.traffic` returned, `snapshot` among it.
        generated_at: Unix seconds.
    """
    snapshots = [router["snapshot"] for router in routers if "snapshot" in router]
    return {
        "generated_at": round(generated_at, 3),
        "windows_s": {"latency": LATENCY_WINDOW_S, "tokens": TOKENS_WINDOW_S},
        "models": sorted(models, key=_by_replica),
        "routers": [_router(router) for router in sorted(routers, key=_by_replica)],
        "all_routers": described(summed(snapshots)),
    }


def _router(router: Mapping[str, Any]) -> dict[str, Any]:
    if "snapshot" not in router:
        return dict(router)
    return {
        "replica": router["replica"],
        "catalog_revision": router.get("catalog_revision"),
        "router_version": router.get("router_version"),
        "references": router.get("references"),
        **described(router["snapshot"]),
    }


def _by_replica(entry: Mapping[str, Any]) -> str:
    return entry.get("replica") or "~"  # the unknown ones last


class NamedReplicas:
    """Remembers the replicas' names, to name one that stops answering."""

    def __init__(self, replicas: ReplicaSet) -> None:
        self._replicas = replicas
        self._seen: set[str] = set()

    async def call(self, method: str) -> list[dict[str, Any]]:
        """Return each replica's answer to `method`, or a problem instead."""
        try:
            answers = await self._replicas.call(method, REPLICA_TIMEOUT_S)
        except TimeoutError:
            return [_problem("not_running", "no replica is running yet")]
        except (RayError, RayServeException) as error:
            return [_failed(error)]
        return self._named([_entry(answer) for answer in answers])

    def _named(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Name the replicas that did not answer, where only they can be the missing ones."""
        answered = {str(a["replica"]) for a in answers if "problem" not in a}
        unreachable = [a for a in answers if "problem" in a]
        missing = sorted(self._seen - answered)
        if len(missing) == len(unreachable):
            for answer, name in zip(unreachable, missing, strict=True):
                answer["replica"] = name
        self._seen = answered | (set(missing) if unreachable else set())
        return answers


def _entry(answer: Any) -> dict[str, Any]:
    if isinstance(answer, TimeoutError):
        return _problem("no_answer", f"no answer within {REPLICA_TIMEOUT_S:g} s")
    if isinstance(answer, BaseException):
        return _failed(answer)
    found: dict[str, Any] = answer
    return found


def _failed(error: BaseException) -> dict[str, Any]:
    """Leave out the error's text, which may quote a question."""
    return _problem("failed", type(error).__name__)


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"replica": None, "problem": code, "message": message}


def summed(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Add up several replicas; `uptime_s` is the longest."""
    given = list(snapshots)
    requests: Counter[tuple[str | None, str | None, str]] = Counter()
    for snapshot in given:
        requests.update(snapshot["requests"])
    confidence = [s["confidence"] for s in given] or [[0] * NUM_CONFIDENCE_BINS]
    return {
        "uptime_s": max((s["uptime_s"] for s in given), default=0.0),
        "requests": dict(requests),
        "confidence": [sum(bins) for bins in zip(*confidence, strict=True)],
        "num_tokens": sum(s["num_tokens"] for s in given),
        "first_token": added(s["first_token"] for s in given),
        "total": added(s["total"] for s in given),
    }


def described(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as /v1/operator shows it.

    Times are in ms, and None where nothing was measured in the window.
    """
    window_s = min(TOKENS_WINDOW_S, max(1.0, snapshot["uptime_s"]))
    ordered = sorted(snapshot["requests"].items(), key=lambda item: (-item[1], str(item[0])))
    return {
        "uptime_s": round(snapshot["uptime_s"], 1),
        "num_requests": sum(snapshot["requests"].values()),
        "requests": [
            {"specialty": specialty, "adapter": adapter, "outcome": outcome, "count": count}
            for (specialty, adapter, outcome), count in ordered
        ],
        "tokens_per_s": round(snapshot["num_tokens"] / window_s, 2),
        "first_token_ms": _percentiles(snapshot["first_token"]),
        "total_ms": _percentiles(snapshot["total"]),
        "confidence": snapshot["confidence"],
    }


def _percentiles(buckets: Buckets) -> dict[str, float | int | None]:
    return {
        "n": sum(buckets.values()),
        "p50": _percentile(buckets, 0.50),
        "p95": _percentile(buckets, 0.95),
    }


def _percentile(buckets: Buckets, share: float) -> float | None:
    """Return milliseconds: the middle of the bucket that holds the nearest-rank percentile."""
    rank = math.ceil(share * sum(buckets.values()))
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return round(1000 * math.pow(2, (bucket + 0.5) / BUCKETS_PER_DOUBLING), 1)
    return None
