"""What one router replica has seen of its traffic: counts and times, never a word of a text.

Everything is bounded: counts by the catalogue, times by histograms over a moving window. Snapshots
of several replicas add up exactly, which percentiles would not.

GET /v1/operator: what every replica holds and does, put together by the replica that is asked.

A replica that does not answer in time is listed with the problem in words; it hides nobody else.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.engine.request import TokenEvent
from deployments.messages import Outcome

NUM_CONFIDENCE_BINS = 10
TOKENS_WINDOW_S = 60
LATENCY_WINDOW_S = 300
_LATENCY_SLOT_S = 30
# Times are counted in buckets, each 9 % wider than the one before: a percentile is within 4.5 %.
_BUCKETS_PER_DOUBLING = 8

Buckets = dict[int, int]  # bucket -> how many


class Snapshot(TypedDict):
    """One replica's counts, as they travel to the replica that was asked for the report."""

    uptime_s: float
    requests: dict[tuple[str | None, str | None, str], int]  # (specialty, adapter, outcome)
    confidence: list[int]  # of 10 equal bins from 0 to 1
    num_tokens: int  # generated in the last minute
    first_token: Buckets
    total: Buckets


class TrafficLog:
    """Args: now: seconds on a monotonic clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started_s = now()
        self._requests: Counter[tuple[str | None, str | None, str]] = Counter()
        self._confidence = [0] * NUM_CONFIDENCE_BINS
        self._tokens: deque[list[int]] = deque(maxlen=TOKENS_WINDOW_S + 1)  # [second, tokens]
        self._slots: deque[_LatencySlot] = deque(maxlen=LATENCY_WINDOW_S // _LATENCY_SLOT_S + 1)

    def record(self, outcome: Outcome) -> None:
        self._requests[outcome.specialty, outcome.adapter, outcome.outcome] += 1
        if outcome.confidence is not None:
            last = NUM_CONFIDENCE_BINS - 1
            self._confidence[min(last, int(outcome.confidence * NUM_CONFIDENCE_BINS))] += 1

    def watch(self) -> "AnswerWatch":
        """For one answer: show it every event."""
        return AnswerWatch(self)

    def snapshot(self) -> Snapshot:
        now = self._now()
        slots = [s for s in self._slots if now - s.begins_s < LATENCY_WINDOW_S + _LATENCY_SLOT_S]
        return {
            "uptime_s": now - self._started_s,
            "requests": dict(self._requests),
            "confidence": list(self._confidence),
            "num_tokens": sum(n for second, n in self._tokens if now - second < TOKENS_WINDOW_S),
            "first_token": _added(slot.first_token for slot in slots),
            "total": _added(slot.total for slot in slots),
        }

    def add_tokens(self, num_tokens: int) -> None:
        second = int(self._now())
        if not self._tokens or self._tokens[-1][0] != second:
            self._tokens.append([second, 0])
        self._tokens[-1][1] += num_tokens

    def add_answer(self, first_token_s: float | None, total_s: float | None) -> None:
        now = self._now()
        if not self._slots or now - self._slots[-1].begins_s >= _LATENCY_SLOT_S:
            self._slots.append(_LatencySlot(now))
        slot = self._slots[-1]
        if first_token_s is not None:
            slot.first_token[_bucket(first_token_s)] += 1
        if total_s is not None:
            slot.total[_bucket(total_s)] += 1


class AnswerWatch:
    """Tokens count when they are generated, times when the answer has ended without an error."""

    def __init__(self, log: TrafficLog) -> None:
        self._log = log
        self._num_tokens = 0

    def saw(self, event: TokenEvent) -> None:
        if event.num_tokens > self._num_tokens:
            self._log.add_tokens(event.num_tokens - self._num_tokens)
            self._num_tokens = event.num_tokens
        if event.finish_reason is not None and event.error is None:
            self._log.add_answer(event.timings.first_token_s, event.timings.total_s)


def summed(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Several replicas as one; `uptime_s` is the longest."""
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
        "first_token": _added(s["first_token"] for s in given),
        "total": _added(s["total"] for s in given),
    }


def described(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as /v1/operator shows it. Times in ms; null: nothing measured in the window."""
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


class _LatencySlot:
    def __init__(self, begins_s: float) -> None:
        self.begins_s = begins_s
        self.first_token: Counter[int] = Counter()
        self.total: Counter[int] = Counter()


def _bucket(seconds: float) -> int:
    return math.floor(math.log2(max(seconds, 1e-4)) * _BUCKETS_PER_DOUBLING)


def _added(many: Iterable[Mapping[int, int]]) -> Buckets:
    result: Counter[int] = Counter()
    for buckets in many:
        result.update(buckets)
    return dict(result)


def _percentiles(buckets: Buckets) -> dict[str, float | int | None]:
    return {
        "n": sum(buckets.values()),
        "p50": _percentile(buckets, 0.50),
        "p95": _percentile(buckets, 0.95),
    }


def _percentile(buckets: Buckets, share: float) -> float | None:
    """Milliseconds: the middle of the bucket that holds the nearest-rank percentile."""
    rank = math.ceil(share * sum(buckets.values()))
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return round(1000 * math.pow(2, (bucket + 0.5) / _BUCKETS_PER_DOUBLING), 1)
    return None


REPLICA_TIMEOUT_S = 2.0


def replica_id() -> str | None:
    """Serve's name for this replica; None outside Serve."""
    try:
        name: str = serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return None
    return name


class ClusterReport:
    """Asks the replicas of both deployments.

    Args:
        model: handle of the model deployment, whose replicas answer `info`.
    """

    def __init__(self, model: DeploymentHandle) -> None:
        self._models = _ReplicaSet(model)
        self._routers: _ReplicaSet | None = None

    async def report(self) -> dict[str, Any]:
        if self._routers is None:
            context = serve.get_replica_context()
            own = serve.get_deployment_handle(context.deployment, context.app_name)
            self._routers = _ReplicaSet(own)
        models, routers = await asyncio.gather(
            self._models.call("info"), self._routers.call("traffic")
        )
        return assemble(models, routers, generated_at=time.time())


def assemble(
    models: list[dict[str, Any]], routers: list[dict[str, Any]], *, generated_at: float
) -> dict[str, Any]:
    """The report. An entry with `problem` (a code) and `message` is a replica without an answer.

    Args:
        models: what `ModelReplica.info` returned, one for each replica.
        routers: likewise of `RouterReplica.traffic`: `replica`, `catalog_revision` and `snapshot`.
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
        **described(router["snapshot"]),
    }


def _by_replica(entry: Mapping[str, Any]) -> str:
    return entry.get("replica") or "~"  # the unknown ones last


class _ReplicaSet:
    """The replicas of one deployment, called one by one so that each has its own deadline."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._seen: set[str] = set()

    async def call(self, method: str) -> list[dict[str, Any]]:
        try:
            async with asyncio.timeout(REPLICA_TIMEOUT_S):
                # `results_async`, the public way, waits for all or gives up on all.
                pending = await self._handle.broadcast(method)._fetch_replica_results_async()
        except TimeoutError:
            return [_problem("not_running", "no replica is running yet")]
        except RayServeException as error:
            return [_failed(error)]
        answers = await asyncio.gather(*(_answer(result) for result in pending))
        return self._named(list(answers))

    def _named(self, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A silent replica cannot say its name; it is known when only it can be missing."""
        answered = {str(a["replica"]) for a in answers if "problem" not in a}
        silent = [a for a in answers if "problem" in a]
        missing = sorted(self._seen - answered)
        if len(missing) == len(silent):
            for answer, name in zip(silent, missing, strict=True):
                answer["replica"] = name
        self._seen = answered | (set(missing) if silent else set())
        return answers


async def _answer(result: Any) -> dict[str, Any]:
    try:
        async with asyncio.timeout(REPLICA_TIMEOUT_S):
            answer: dict[str, Any] = await result.get_async()
            return answer
    except TimeoutError:
        result.cancel()
        return _problem("no_answer", f"no answer within {REPLICA_TIMEOUT_S:g} s")
    except Exception as error:  # whatever the replica raised: the others' answers still count
        return _failed(error)


def _failed(error: Exception) -> dict[str, Any]:
    """Its text stays out of the report: it may quote a question."""
    return _problem("failed", type(error).__name__)


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"replica": None, "problem": code, "message": message}
