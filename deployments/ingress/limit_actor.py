"""The ledger of keys' limits as a Ray actor, which outlives every router replica."""

import asyncio
import logging
import time

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError

from deployments.api.access.limit_ledger import Claims, Grants, LimitLedger, Turn
from deployments.api.access.shared_limits import SharedUsageTable
from deployments.settings import Settings

logger = logging.getLogger(__name__)

_NAMESPACE = "polyclinic"
# Without a router replica for so long, nobody needs the ledger: all buckets are full again.
_UNUSED_S = 60.0


class LimitActor:
    """Ray starts it again when its process or its node dies; it knows nothing of before then.

    Args:
        starts_full: of LimitLedger.
        unused_s: it ends when no router replica was heard for so long.
    """

    def __init__(self, starts_full: bool, unused_s: float = _UNUSED_S) -> None:
        was_there = ray.get_runtime_context().was_current_actor_reconstructed
        self._ledger = LimitLedger(time.monotonic, starts_full=starts_full and not was_there)
        self._unused_s = unused_s
        self._ending: asyncio.Task[None] | None = None

    async def exchange(self, session: str, turn: Turn, claims: Claims) -> Grants:
        if self._ending is None:
            self._ending = asyncio.create_task(self._end_when_unused())
        return self._ledger.exchange(session, turn, claims)

    async def _end_when_unused(self) -> None:
        used_at = time.monotonic()
        while time.monotonic() - used_at < self._unused_s:
            await asyncio.sleep(1.0)
            if self._ledger.num_sessions:
                used_at = time.monotonic()
        ray.kill(ray.get_runtime_context().current_actor)


class RayLedger:
    """Implements Ledger. The actor is made by the first router replica that looks for it.

    Args:
        application: its name; each has its own ledger.
    """

    def __init__(self, application: str) -> None:
        self._name = f"limits-{application}"
        self._heard_at: float | None = None
        self._actor: ActorHandle | None = None
        self._connect()

    async def exchange(self, session: str, turn: Turn, claims: Claims) -> Grants:
        if self._actor is None:
            await asyncio.to_thread(self._connect)
        actor = self._actor
        assert actor is not None
        try:
            grants: Grants = await actor.exchange.remote(session, turn, claims)
        except ActorDiedError:  # and Ray does not start it again
            self._actor = None
            raise
        self._heard_at = time.monotonic()
        return grants

    def _connect(self) -> None:
        heard_at = self._heard_at
        is_first = heard_at is None or time.monotonic() - heard_at > _UNUSED_S
        options = {
            "name": self._name,
            "namespace": _NAMESPACE,
            "get_if_exists": True,
            "lifetime": "detached",
            "max_restarts": -1,
            "num_cpus": 0,
        }
        self._actor = ray.remote(LimitActor).options(**options).remote(is_first)


def shared_usages(settings: Settings) -> SharedUsageTable | None:
    """Return what keys use, where several router replicas count it together; None for one alone.

    The builder has put the number of them into the settings. An event loop is running.
    """
    num_routers = settings.router.replicas
    if settings.auth.mode != "keys" or num_routers == "auto" or num_routers < 2:
        return None
    application = serve.get_replica_context().app_name
    usages = SharedUsageTable(RayLedger(application), num_routers, time.monotonic)
    usages.start()
    return usages
