"""How the operator's changes reach every replica, and which replicas did not confirm."""

import asyncio
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from adapters.versions import AdapterVersion
from deployments.adapter_admin import TRY_TIMEOUT_S, BroadcastReply, NobodyToAsk
from deployments.replica_set import ReplicaSet, own_replicas

NUM_TRIES = 3
PAUSE_S = 0.5


class ServeReplicas:
    """Implements `adapter_admin.Replicas`."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model
        self._models = ReplicaSet(model)
        self._routers: ReplicaSet | None = None

    async def try_adapter(self, name: str, version: AdapterVersion) -> list[str]:
        try:
            async with asyncio.timeout(TRY_TIMEOUT_S):
                return list(await self._model.try_adapter.remote(name, version))
        except TimeoutError:
            cause = f"none answered within {TRY_TIMEOUT_S:.0f} s"
        except (RayError, RayServeException) as error:
            cause = type(error).__name__
        raise NobodyToAsk(f"the new version could not be tried on a model replica: {cause}")

    async def broadcast(self, timeout_s: float) -> BroadcastReply:
        return await self._all("refresh_catalog", "sync_adapters", timeout_s)

    async def reports(self, timeout_s: float) -> BroadcastReply:
        return await self._all("catalog_state", "adapter_report", timeout_s)

    async def _all(self, of_router: str, of_model: str, timeout_s: float) -> BroadcastReply:
        """Call a method on each router replica, then one on each model replica.

        Those that Serve did not know of yet are asked again, and at last counted.
        """
        unreachable = await self._unreachable_routers(of_router, timeout_s)
        for attempt in range(NUM_TRIES):
            if attempt:
                await asyncio.sleep(PAUSE_S)
            answers = await _answers(self._models, of_model, timeout_s)
            reports = [answer for answer in answers if isinstance(answer, dict)]
            num_running = await self._models.num_running()
            if num_running is None or len(reports) >= num_running:
                return BroadcastReply(reports, unreachable)
        causes = [type(a).__name__ for a in answers if isinstance(a, BaseException)]
        missing = f"{num_running} model replicas run and {len(reports)} answered"
        why = f"{missing} ({', '.join(causes)})" if causes else missing
        why = f"{why}; they follow by themselves"
        return BroadcastReply(reports, {**unreachable, "unknown": why})

    async def _unreachable_routers(self, method: str, timeout_s: float) -> dict[str, str]:
        """Return router replica -> why it has not taken the catalogue over."""
        try:
            self._routers = self._routers or own_replicas()
        except RayServeException:  # not in Serve: a test
            return {}
        answers = await _answers(self._routers, method, timeout_s)
        unreachable = {
            f"router {number}": type(answer).__name__
            for number, answer in enumerate(answers)
            if isinstance(answer, BaseException)
        }
        failed = [a for a in answers if isinstance(a, dict) and a["error"]]
        unreachable |= {a["replica"]: a["error"] for a in failed}
        num_running = await self._routers.num_running()
        if num_running is not None and len(answers) < num_running:
            unreachable["routers"] = (
                f"{num_running} router replicas run and {len(answers)} answered; they follow by "
                "themselves"
            )
        return unreachable


async def _answers(replicas: ReplicaSet, method: str, timeout_s: float) -> list[Any]:
    try:
        return await replicas.call(method, timeout_s)
    except (TimeoutError, RayError, RayServeException, RuntimeError) as error:
        return [error]
