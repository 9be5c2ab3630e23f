"""How a router replica reaches every replica of the application: Serve's broadcast, and a count.

A broadcast reaches the replicas that Serve knew at that moment. So its answers are compared with
the number of replicas that run, and asked for once more when they are too few.

A call to the model deployment: what Serve raises becomes events, a lost replica is tried again.

Only a call that has yielded nothing is repeated, and once: the client cannot tell, and nothing is
said twice.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Protocol

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from adapters.versions import AdapterVersion
from deployments.adapter_admin import TRY_TIMEOUT_S, BroadcastReply, NobodyToAsk
from deployments.engine.request import ErrorInfo, QueueFull, TokenEvent, failed_event
from deployments.messages import GenerateRequest

LOST = ErrorInfo(
    "replica_lost", "the model replica was lost while answering: ask again", retry_after_s=5
)
# What a replica that is about to be replaced says, before it has begun to answer.
_ENDED_ENGINE = "engine_stopped"


class EventResponse(Protocol):
    """What a streaming handle returns (Serve's DeploymentResponseGenerator)."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]: ...

    def cancel(self) -> None: ...


class OneEvent:
    """A plain response as a stream of one event."""

    def __init__(self, response: DeploymentResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        yield await self._response

    def cancel(self) -> None:
        self._response.cancel()


Start = Callable[[GenerateRequest], EventResponse]


async def answer_events(start: Start, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
    """Events of one answer, the last of them terminal. Closing it cancels the answer.

    Args:
        start: sends the call to a replica that Serve picks.
    """
    has_begun = False
    async with contextlib.aclosing(_attempt(start, call)) as events:
        async for event in events:
            if has_begun or not _is_lost(event):
                has_begun = True
                yield event
    if has_begun:
        return
    logger.warning("request %s: its replica was lost; asking another", call.request_id)
    async with contextlib.aclosing(_attempt(start, call)) as events:
        async for event in events:
            yield event


def _is_lost(event: TokenEvent) -> bool:
    return event.error is not None and event.error.code in (LOST.code, _ENDED_ENGINE)


async def _attempt(start: Start, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
    response = start(call)
    is_finished = False
    try:
        async for event in response:
            is_finished = event.finish_reason is not None
            yield event
    except BackPressureError as error:
        is_finished = True
        num_waiting, limit = error.args[:2]
        yield failed_event(call.request_id, QueueFull(num_waiting, limit).info)
    except RayActorError:
        is_finished = True
        yield failed_event(call.request_id, LOST)
    finally:
        if not is_finished:
            response.cancel()


logger = logging.getLogger(__name__)

NUM_TRIES = 3
PAUSE_S = 0.5


class ServeReplicas:
    """Implements `adapter_admin.Replicas`."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    async def try_adapter(self, name: str, version: AdapterVersion) -> list[str]:
        try:
            async with asyncio.timeout(TRY_TIMEOUT_S):
                return list(await self._model.try_adapter.remote(name, version))
        except TimeoutError:
            cause = f"none answered within {TRY_TIMEOUT_S:.0f} s"
        except (RayError, BackPressureError) as error:
            cause = type(error).__name__
        raise NobodyToAsk(f"the new version could not be tried on a model replica: {cause}")

    async def tell(self, timeout_s: float) -> BroadcastReply:
        routers = await self._tell_routers(timeout_s)
        for attempt in range(NUM_TRIES):
            if attempt:
                await asyncio.sleep(PAUSE_S)
            answers = await _broadcast(self._model, "sync_adapters", timeout_s)
            reports = [answer for answer in answers if isinstance(answer, dict)]
            num_running = await asyncio.to_thread(_num_running, self._model)
            if num_running is None or len(reports) >= num_running:
                return BroadcastReply(reports, routers)
        causes = [type(a).__name__ for a in answers if isinstance(a, BaseException)]
        missing = f"{num_running} model replicas run and {len(reports)} answered"
        why = f"{missing} ({', '.join(causes)})" if causes else missing
        return BroadcastReply(reports, {**routers, "unknown": f"{why}; they follow by themselves"})

    async def _tell_routers(self, timeout_s: float) -> dict[str, str]:
        """Replica -> why it has not taken the catalogue over."""
        try:
            context = serve.get_replica_context()
        except RayServeException:  # not in Serve: a test
            return {}
        own = serve.get_deployment_handle(context.deployment, context.app_name)
        answers = await _broadcast(own, "refresh_catalog", timeout_s)
        silent = {
            f"router {number}": type(answer).__name__
            for number, answer in enumerate(answers)
            if isinstance(answer, BaseException)
        }
        silent |= {a["replica"]: a["error"] for a in answers if isinstance(a, dict) and a["error"]}
        num_running = await asyncio.to_thread(_num_running, own)
        if num_running is not None and len(answers) < num_running:
            silent["routers"] = (
                f"{num_running} router replicas run and {len(answers)} answered; they follow by "
                "themselves"
            )
        return silent


async def _broadcast(handle: DeploymentHandle, method: str, timeout_s: float) -> list[Any]:
    """Each replica's answer, or the exception in its place."""
    try:
        found = handle.broadcast(method).results_async(timeout_s=timeout_s, return_exceptions=True)
        return list(await found)
    except (TimeoutError, RayError, RuntimeError) as error:
        return [error]


def _num_running(handle: DeploymentHandle) -> int | None:
    """Replicas of the deployment that serve now; None: Serve does not say."""
    try:
        applications = serve.status().applications
        deployment = applications[handle.app_name].deployments[handle.deployment_name]
    except (RayServeException, RayError, KeyError, AttributeError):
        return None
    return int(deployment.replica_states.get("RUNNING", 0))
