"""How a new version takes over: its routers before its models, so that no question meets nobody.

Serve replaces the two deployments independently, and asks `check_health` of a new replica before it
lets an old one go. There each side waits for the other. A new model, once it is loaded, says so to
the routers that run. A new router asks them, takes over when it hears that, and keeps its calls
until a model of its version runs. The new model takes over once all routers that run are of its
version, and the last calls of the old ones have been sent.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

ROUTER = "Router"
# How long the replicas of a new version wait for each other.
TIMEOUT_S = 1800.0
_POLL_S = 0.2
_CALL_TIMEOUT_S = 2.0
# A model repeats that it is loaded; what is older is of one that has failed.
_ANNOUNCED_S = 5.0
# From a question that an old router lets in to the call that it sends for it.
_LAST_CALLS_S = 1.0


class Replicas(Protocol):
    """What this needs of `ReplicaSet`."""

    async def call(self, method: str, timeout_s: float, *args: Any) -> list[Any]: ...


class RouterHandover:
    """One router replica's side.

    Args:
        config: of this version; equal on both sides.
        routers: of the application, which tells those that run.
        is_early: whether models run, and none of this version was seen yet.
    """

    def __init__(
        self,
        config: str,
        routers: Callable[[], Replicas],
        is_early: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._routers = functools.cache(routers)
        self._is_early = is_early
        self._clock = clock
        self._is_done = False
        self._announced: dict[str, float] = {}

    def announce(self, config: str) -> str:
        """Note that a model of version `config` is loaded; return this router's version."""
        self._announced[config] = self._clock()
        return self._config

    def announced(self) -> list[str]:
        """Return the versions of which a model is loaded that does not run yet."""
        oldest = self._clock() - _ANNOUNCED_S
        return [config for config, at in self._announced.items() if at > oldest]

    async def wait(self) -> None:
        """Return when this router may take over; at once, if it has or nobody was before it.

        Raises:
            TimeoutError: no model of this version came; the old version's routers stay.
        """
        async with asyncio.timeout(None if self._is_done else TIMEOUT_S):
            while not self._is_done and self._is_early() and not await self._is_announced():
                await asyncio.sleep(_POLL_S)
        self._is_done = True

    async def _is_announced(self) -> bool:
        answers = await _answers(self._routers, "announced_models")
        return any(self._config in answer for answer in answers if isinstance(answer, list))


class ModelHandover:
    """One model replica's side; as RouterHandover."""

    def __init__(self, config: str, routers: Callable[[], Replicas]) -> None:
        self._config = config
        self._routers = functools.cache(routers)
        self._is_done = False

    async def wait(self) -> None:
        """Return when this model, which is loaded, may take over: at once where no router of
        another version runs.

        Raises:
            TimeoutError: other routers still run; the old version's models stay.
        """
        if self._is_done:
            return
        async with asyncio.timeout(TIMEOUT_S):
            has_waited = False
            while await self._others_run():
                has_waited = True
                await asyncio.sleep(_POLL_S)
        if has_waited:
            await asyncio.sleep(_LAST_CALLS_S)
        self._is_done = True

    async def _others_run(self) -> bool:
        answers = await _answers(self._routers, "announce_model", self._config)
        return any(isinstance(answer, str) and answer != self._config for answer in answers)


async def _answers(routers: Callable[[], Replicas], method: str, *args: str) -> Sequence[Any]:
    """Return what the routers that run say; nothing where there is none, or outside Serve. A router
    of a version that does not know `method` says nothing either."""
    try:
        return await routers().call(method, _CALL_TIMEOUT_S, *args)
    except (RayError, RayServeException, TimeoutError):
        return []
