"""GET /v1/operator: what every replica holds and does, put together by the replica that is asked.

A replica that does not answer in time is listed with the problem in words; it hides nobody else.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.traffic import LATENCY_WINDOW_S, TOKENS_WINDOW_S, described, summed

REPLICA_TIMEOUT_S = 2.0


def replica_id() -> str | None:
    """Serve's name for this replica; None outside Serve."""
    try:
        name: str = serve.get_replica_context().replica_id.unique_id
    except RayServeException:
        return None
    return name


class OperatorDesk:
    """Asks the replicas of both deployments.

    Args:
        model: handle of the model deployment, whose replicas answer `info`.
    """

    def __init__(self, model: DeploymentHandle) -> None:
        self._models = _Roll(model)
        self._routers: _Roll | None = None

    async def report(self) -> dict[str, Any]:
        if self._routers is None:
            context = serve.get_replica_context()
            own = serve.get_deployment_handle(context.deployment, context.app_name)
            self._routers = _Roll(own)
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


class _Roll:
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
