"""Serve shell of the router: HTTP ingress, classifier, policy, and the handle to the model."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from adapters.sources import SourceLimits
from adapters.token_prompts import BadTokenId
from deployments.adapter_admin import AdapterAdmin
from deployments.api.access.admission import Admission
from deployments.api.app import behind_front_door, create_api
from deployments.api.errors import engine_error
from deployments.clocks import sender_name
from deployments.engine.errors import QueueFull
from deployments.engine.request import ErrorInfo, TokenEvent
from deployments.handover import RouterHandover
from deployments.ingress.broadcast import ServeReplicas
from deployments.ingress.call_guard import NO_MODEL_REPLICA, CallGuard
from deployments.ingress.followed import follow_all
from deployments.ingress.limit_actor import shared_usages
from deployments.ingress.metrics import RouteMetrics
from deployments.ingress.model_client import ModelClient, answer_events, info_of
from deployments.ingress.model_watch import ModelWatch
from deployments.ingress.operator import ClusterReport
from deployments.ingress.quarantine import Quarantine
from deployments.ingress.readiness import Readiness, Served, WaitEstimate, too_long
from deployments.ingress.references_source import ReferencesSource
from deployments.ingress.traffic import TrafficLog
from deployments.interpreter import tune_interpreter
from deployments.live_settings import RouterLiveSettings
from deployments.messages import GenerateRequest, Outcome, ServedModels
from deployments.observe.sampling import Sampler
from deployments.observe.tracing import spanned, start_tracing, stop_tracing
from deployments.replica import (
    live_settings,
    open_adapter_store,
    replica_id,
    use_serve_handlers,
)
from deployments.replica_set import ReplicaSet, own_replicas
from deployments.settings import Settings
from router.classifier import Classifier
from router.policy import Route, Thresholds, decide, decide_explicit
from router.urgency.red_flags import load_red_flags

logger = logging.getLogger(__name__)

# Calls that may be sent again within a minute, for each row of one model replica.
RETRIES_PER_ROW = 8
DECODE_TIMEOUT_S = 10.0
_LANGUAGE_NAMES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish"}
# A conversation's user turns, and the request's own threshold, if it gives one.
_Asked = tuple[Sequence[str], float | None]


class RouterReplica:
    """Implements `messages.Backend`. Small and on the CPU, so a machine may run several."""

    def __init__(self, settings: Settings, model: DeploymentHandle) -> None:
        use_serve_handlers("INFO")
        start_tracing("router", replica_id)
        self._model = model
        self._client = ModelClient(model, ray.util.get_node_ip_address())
        self._live = RouterLiveSettings()
        self._refused: list[str] = []
        self._settings = settings
        self._metrics = RouteMetrics()
        self.references = ReferencesSource(settings.shelf_place)
        self._red_flags = load_red_flags()
        self._traffic = TrafficLog()
        self._operator = ClusterReport(model)
        store = open_adapter_store(settings)
        self._followed = follow_all(settings, store, lambda: self._live.reload_check_s)
        self._router, self._catalog = self._followed.classifier, self._followed.catalog
        self._config, self._name = settings.model_config_id, sender_name(uuid.uuid4().hex)
        self._admission = Admission()
        self._wait = WaitEstimate()
        self._watch = ModelWatch(
            ReplicaSet(model),
            self._config,
            self._name,
            may_sleep=settings.model_replicas.min == 0,
        )
        quarantine = Quarantine(RETRIES_PER_ROW * settings.engine.max_rows)
        self._guard = CallGuard(self._watch, quarantine)
        self._watch.on_empty = self._guard.expire
        self._watch.on_reports = self._guard.saw
        self._readiness = Readiness(settings, self._followed, self._watch, self._admission)
        self._admin = AdapterAdmin(
            store,
            self._catalog.refresh,
            ServeReplicas(model),
            settings.base_model,
            max_rank=settings.engine.max_adapter_rank,
            num_slots=settings.engine.max_adapters,
            limits=SourceLimits(
                schemes=tuple(settings.adapter_sources.schemes),
                hosts=frozenset(settings.adapter_sources.hosts),
            ),
        )
        base = store.seed.base_model(settings.base_model)
        self._base_languages = base.languages
        self._served = Served(settings, base, self._router, self._catalog)
        self._handover = RouterHandover(self._config, own_replicas, lambda: self._watch.is_early)
        self._usages = shared_usages(settings)
        tune_interpreter()
        self._followed.start()
        self._watch.start()
        measured, admission = self._metrics, self._admission  # not self, which __del__ is to end
        self._sampler = Sampler(
            {"router": os.getpid()}, lambda: measured.in_progress.set(admission.num_running)
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        api = create_api(self, self._admin)
        return behind_front_door(
            api,
            self._settings,
            self._followed.keys,
            lambda: self._live,
            admission=self._admission,
            usages=self._usages,
            proxy_adds_id=True,
            count_refusal=self._metrics.count_error,
            is_logging=lambda: self._live.log_requests,
        )

    async def check_health(self) -> None:
        """Wait, before the first questions, while only models of the version before are running and
        none of this one is loaded: until then the old routers go on with the old models."""
        await self._handover.wait()

    @property
    def clinic(self) -> ServedModels:
        return self._served.models

    @property
    def limits(self) -> RouterLiveSettings:
        return self._live

    async def classify(
        self, conversations: Sequence[Sequence[str]], min_confidence: float | None = None
    ) -> list[Route]:
        """Classify. Single questions that wait at the same time share a run of the encoder."""
        asked = [(conversation, min_confidence) for conversation in conversations]
        with spanned("route"):
            if len(asked) == 1:
                routes = [await self._one_of_a_batch(asked[0])]
            else:
                routes = await self._routes(asked)
        for route in routes:
            self._metrics.count_route(route)
        return routes

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _one_of_a_batch(self, asked: list[_Asked]) -> list[Route]:
        return await self._routes(asked)

    async def _routes(self, asked: Sequence[_Asked]) -> list[Route]:
        classifier = self._router.current
        thresholds = self._thresholds(classifier)
        conversations = [conversation for conversation, _ in asked]
        adapters = self._catalog.current.by_specialty

        def routes() -> list[Route]:
            return [
                self._flagged(
                    decide(
                        classification,
                        thresholds=thresholds.overruled(min_confidence),
                        adapters=adapters,
                        base_languages=self._base_languages,
                    ),
                    turns,
                )
                for classification, (turns, min_confidence) in zip(
                    classifier.classify(conversations), asked, strict=True
                )
            ]

        return await asyncio.to_thread(routes)

    def explicit(self, specialty: str | None, turns: Sequence[str]) -> Route:
        route = decide_explicit(
            specialty,
            self._router.current.language(turns[-1]),
            adapters=self._catalog.current.by_specialty,
            base_languages=self._base_languages,
        )
        return self._flagged(route, turns)

    def _flagged(self, route: Route, turns: Sequence[str]) -> Route:
        """Return the route with the conversation's red flags, whatever the router made of it."""
        if not self._live.red_flags:
            return route
        found = self._red_flags.find(turns, route.language)
        return dataclasses.replace(route, red_flags=found.flags, advice=found.advice)

    def answer_language(self, route: Route) -> str | None:
        if route.notice != "language_not_supported":
            return None
        main = self._base_languages[0]
        return _LANGUAGE_NAMES.get(main, main)

    def refusal(self, timeout_s: float) -> ErrorInfo | None:
        if not self._watch.is_served:
            return NO_MODEL_REPLICA
        engine, live = self._settings.engine, self._live
        num_replicas, in_progress = self._watch.num_replicas, self._admission.num_running
        num_waiting = in_progress - 2 * engine.max_rows * num_replicas  # as many are held ready
        if num_waiting > engine.max_waiting:
            return QueueFull(num_waiting, engine.max_waiting).info
        wait_s = self._wait.wait_s(in_progress, engine.max_rows * num_replicas)
        return too_long(wait_s, min(timeout_s, live.max_wait_s), in_progress)

    async def decode(self, prompts: Sequence[Sequence[int]]) -> list[str] | BadTokenId:
        if not self._watch.is_served:
            raise engine_error(NO_MODEL_REPLICA)
        try:
            async with asyncio.timeout(DECODE_TIMEOUT_S):
                decoded: list[str] | BadTokenId = await self._model.decode_prompts.remote(prompts)
        except TimeoutError:
            raise engine_error(NO_MODEL_REPLICA) from None
        except (RayActorError, RayServeException) as error:
            raise engine_error(info_of(error)) from None
        return decoded

    def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        marked = dataclasses.replace(call, config=self._config, sender=self._name)
        watch = self._traffic.watch()

        def saw(event: TokenEvent) -> None:
            watch.saw(event)
            self._wait.saw(event)

        return answer_events(self._client.start, marked, self._guard, saw)

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        thresholds = self._thresholds(self._router.current)
        is_ready, report = self._readiness.report(thresholds, self._refused)
        references = await self._references_state()
        degraded = report["degraded"]
        if self._live.references.is_used and references["problem"]:
            degraded = [*degraded, f"references: {references['problem']}"]
        return is_ready, {**report, "degraded": degraded, "references": references}

    async def _references_state(self) -> dict[str, Any]:
        mode = self._live.references.mode
        is_used = self._live.references.is_used
        return {"mode": mode, **await self.references.state(is_used=is_used)}

    async def operator_report(self) -> Mapping[str, Any]:
        return await self._operator.report()

    async def traffic(self) -> dict[str, Any]:
        """Return this replica's part of the operator's report; called through a handle."""
        return {
            "replica": replica_id(),
            "catalog_revision": self._catalog.current.revision,
            "router_version": self._router.current.version,
            "references": await self._references_state(),
            "snapshot": self._traffic.snapshot(),
        }

    async def refresh_catalog(self) -> dict[str, Any]:
        """Take over a change of the adapters now; returns `catalog_state()`."""
        await asyncio.to_thread(self._catalog.refresh)
        return self.catalog_state()

    def announce_model(self, config: str) -> str:
        """See `RouterHandover.announce`; called by model replicas through a handle."""
        return self._handover.announce(config)

    def announced_models(self) -> list[str]:
        """See `RouterHandover.announced`; called by router replicas through a handle."""
        return self._handover.announced()

    def in_progress(self) -> dict[str, Any]:
        """Return how many requests this replica has let in that have not ended."""
        return {"num_running": self._admission.num_running}

    def drain(self) -> dict[str, Any]:
        """Let no new request in any more; returns `in_progress()`. Called when the server stops."""
        self._admission.drain()
        return self.in_progress()

    def catalog_state(self) -> dict[str, Any]:
        """Return whose catalogue this is, and why it could not be read (`error`), if so."""
        return {"replica": f"router {replica_id()}", "error": self._catalog.problem}

    def record(self, outcome: Outcome) -> None:
        self._metrics.record(outcome)
        self._traffic.record(outcome)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take over live settings. Never raises, since Serve would replace a healthy replica."""
        self._live, self._refused = live_settings(self._live, user_config, "user_config of Router")
        live = self._live
        use_serve_handlers(live.log_level, are_requests_logged=live.log_requests)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # the start failed half-way
            self._sampler.stop()
        stop_tracing()

    def _thresholds(self, classifier: Classifier) -> Thresholds:
        """Return the live values; where one is null, what the artefact was tuned to."""
        tuned, live = classifier.thresholds, self._live
        return dataclasses.replace(
            tuned.overruled(live.min_confidence),
            min_in_scope=_or(live.min_in_scope, tuned.min_in_scope),
            min_margin=_or(live.min_margin, tuned.min_margin),
        )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
