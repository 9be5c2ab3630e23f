"""The replicas of one deployment, asked all at once through Serve's broadcast."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentBroadcastResponse, DeploymentHandle

_NUM_THREADS = 4  # broadcasts at the same time
_STATUS_TIMEOUT_S = 5.0  # Serve's own call waits for ever where its controller hangs


class ReplicaSet:
    """A broadcast reaches the replicas that Serve knew at that moment, so callers that need every
    replica compare the number of answers with `num_running`."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        # `results` gives each replica its own deadline, `results_async` gives up on all together.
        # It blocks, and must not hold the threads that classify questions.
        self._loop = _running_loop()
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="broadcast")
        self._asking = ThreadPoolExecutor(1, thread_name_prefix="serve-status")

    async def call(self, method: str, timeout_s: float, *args: Any) -> list[Any]:
        """Call a method on each replica, with `args`.

        Returns:
            Each replica's answer, or the exception instead; TimeoutError if it did not answer.

        Raises:
            TimeoutError: no replica is running yet.
            RayServeException, RayError: the deployment cannot be reached.
        """
        called = self._handle.broadcast(method, *args)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _results, called, timeout_s)

    def ask(self, method: str, timeout_s: float, *args: Any) -> list[Any]:
        """As `call`, for a thread; `args` go to the method."""
        if self._loop is None:
            return _results(self._handle.broadcast(method, *args), timeout_s)
        # In Serve's throughput mode a call can be sent from the event loop only.
        sending = asyncio.run_coroutine_threadsafe(self._send(method, args), self._loop)
        return _results(sending.result(timeout_s), timeout_s)

    async def _send(self, method: str, args: tuple[Any, ...]) -> DeploymentBroadcastResponse:
        return self._handle.broadcast(method, *args)

    async def num_running(self) -> int | None:
        """Return how many replicas serve now. None if Serve does not say."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._num_running)

    def is_healthy(self) -> bool:
        """Return whether Serve has all the replicas that it wants, maybe none; for a thread."""
        deployment = self._status()
        return deployment is not None and deployment.status == "HEALTHY"

    def _num_running(self) -> int | None:
        deployment = self._status()
        return None if deployment is None else int(deployment.replica_states.get("RUNNING", 0))

    def _status(self) -> Any:
        asked = self._asking.submit(serve.status)
        try:
            application = asked.result(_STATUS_TIMEOUT_S).applications[self._handle.app_name]
            return application.deployments[self._handle.deployment_name]
        except (RayServeException, RayError, KeyError, AttributeError, TimeoutError):
            asked.cancel()
            return None


def _results(called: DeploymentBroadcastResponse, timeout_s: float) -> list[Any]:
    return list(called.results(timeout_s=timeout_s, return_exceptions=True))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def own_replicas() -> ReplicaSet:
    """Return the replicas of the deployment that the caller is a replica of.

    Raises:
        RayServeException: the caller is outside Serve.
    """
    return replicas_beside(serve.get_replica_context().deployment)


def replicas_beside(deployment: str) -> ReplicaSet:
    """Return the replicas of a deployment of the caller's application.

    Raises:
        RayServeException: the caller is outside Serve.
    """
    context = serve.get_replica_context()
    return ReplicaSet(serve.get_deployment_handle(deployment, context.app_name))
