"""Serve shell of the router: HTTP ingress, classifier, policy, and the handle to the model."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from adapters.catalog import load_catalog
from deployments.api import create_api
from deployments.calls import AdapterCard, Clinic, GenerationCall, Outcome
from deployments.engine.request import ErrorInfo, QueueFull, TokenEvent, failed_event
from deployments.operator_report import OperatorDesk, replica_id
from deployments.router_reloading import FollowedClassifier
from deployments.serve_logging import use_serve_handlers
from deployments.settings import RouterLiveSettings, Settings, SettingsError, parse_strict
from deployments.traffic import TrafficLog
from router.classifier import Classifier
from router.policy import Route, Thresholds, decide, decide_explicit

logger = logging.getLogger(__name__)

READINESS_TIMEOUT_S = 10.0
_LANGUAGE_NAMES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish"}
_CONFIDENCE_BOUNDARIES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]


class RouterReplica:
    """Implements `calls.Backend`. Small and on the CPU: several may run beside each other."""

    def __init__(self, settings: Settings, model: DeploymentHandle) -> None:
        use_serve_handlers("INFO")
        self._model = model
        self._live = RouterLiveSettings()
        self._metrics = _RouterMetrics()
        self._traffic = TrafficLog()
        self._operator = OperatorDesk(model)
        self._router = FollowedClassifier(settings, lambda: self._live.reload_check_s)
        catalog = load_catalog(settings.catalog_dir)
        entries = catalog.adapters_for(settings.base_model)
        self._base_languages = catalog.base_model(settings.base_model).languages
        self._adapters = {entry.specialty: entry.name for entry in entries}
        self._clinic = Clinic(
            base_model=settings.base_model,
            adapters=tuple(AdapterCard(e.name, e.specialty, e.version) for e in entries),
            specialties=(),  # `clinic` fills it: the router's labels may change
            default_output_tokens=settings.engine.default_output_tokens,
            max_output_tokens=settings.engine.max_output_tokens,
            started_at=int(time.time()),
        )
        self._router.start()

    def __serve_build_asgi_app__(self) -> Starlette:
        return create_api(self)

    @property
    def clinic(self) -> Clinic:
        specialties = {*self._router.current.specialties, *self._adapters}
        return dataclasses.replace(self._clinic, specialties=tuple(sorted(specialties)))

    @property
    def limits(self) -> RouterLiveSettings:
        return self._live

    async def classify(self, conversations: Sequence[Sequence[str]]) -> list[Route]:
        """Single questions that wait at the same time share a run of the encoder."""
        if len(conversations) == 1:
            return [await self._one_of_a_batch(conversations[0])]
        return await self._routes(conversations)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _one_of_a_batch(self, conversations: list[Sequence[str]]) -> list[Route]:
        return await self._routes(conversations)

    async def _routes(self, conversations: Sequence[Sequence[str]]) -> list[Route]:
        classifier = self._router.current
        thresholds = self._thresholds(classifier)
        classified = await asyncio.to_thread(classifier.classify, conversations)
        return [
            decide(
                classification,
                thresholds=thresholds,
                adapters=self._adapters,
                base_languages=self._base_languages,
            )
            for classification in classified
        ]

    def explicit(self, specialty: str | None, question: str) -> Route:
        return decide_explicit(
            specialty,
            self._router.current.language(question),
            adapters=self._adapters,
            base_languages=self._base_languages,
        )

    def answer_language(self, route: Route) -> str | None:
        if route.notice != "language_not_supported":
            return None
        main = self._base_languages[0]
        return _LANGUAGE_NAMES.get(main, main)

    async def generate(self, call: GenerationCall) -> AsyncGenerator[TokenEvent, None]:
        response = self._model.generate.options(stream=True).remote(call)
        is_finished = False
        watch = self._traffic.watch()
        try:
            async for event in response:
                watch.saw(event)
                is_finished = event.finish_reason is not None
                yield event
        except BackPressureError as error:
            is_finished = True
            num_waiting, limit = error.args[:2]
            refusal = QueueFull(num_waiting, limit)
            yield failed_event(call.request_id, refusal.info)
        except RayActorError:
            is_finished = True
            message = "the model replica was lost while answering: ask again"
            yield failed_event(call.request_id, ErrorInfo("replica_lost", message, retry_after_s=5))
        finally:
            if not is_finished:
                response.cancel()

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        classifier = self._router.current
        labels = set(classifier.specialties)
        router = {
            "version": classifier.version,
            "encoder": classifier.encoder_name,
            "specialties": list(classifier.specialties),
            "without_adapter": sorted(labels - set(self._adapters)),
            "explicit_only": sorted(set(self._adapters) - labels),
            **dataclasses.asdict(self._thresholds(classifier)),
            "reload_problem": self._router.problem,
        }
        try:
            async with asyncio.timeout(READINESS_TIMEOUT_S):
                model = await self._model.info.remote()
        except TimeoutError:
            cause = f"no model replica answered within {READINESS_TIMEOUT_S:.0f} s"
            return False, {"cause": cause, "router": router}
        except (RayError, BackPressureError) as error:
            return False, {"cause": f"the model: {type(error).__name__}", "router": router}
        return True, {**model, "router": router}

    async def operator_report(self) -> Mapping[str, Any]:
        return await self._operator.report()

    def traffic(self) -> dict[str, Any]:
        """This replica's part of the operator's report; Serve calls it through a handle."""
        return {"replica": replica_id(), "snapshot": self._traffic.snapshot()}

    def record(self, outcome: Outcome) -> None:
        self._metrics.record(outcome)
        self._traffic.record(outcome)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Never raises: Serve would replace a healthy replica for it."""
        try:
            self._live = parse_strict(RouterLiveSettings, user_config, "user_config of Router")
        except SettingsError as error:
            logger.error("kept the previous user_config: %s", error)
        use_serve_handlers(self._live.log_level)

    def _thresholds(self, classifier: Classifier) -> Thresholds:
        """The live values; null keeps what the artefact was tuned to."""
        tuned, live = classifier.thresholds, self._live
        return Thresholds(
            min_confidence=_either(live.min_confidence, tuned.min_confidence),
            min_in_scope=_either(live.min_in_scope, tuned.min_in_scope),
            min_margin=_either(live.min_margin, tuned.min_margin),
        )


class _RouterMetrics:
    """DESIGN.md section 7, as far as the router knows them. Labels are bounded by the catalogue."""

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "polyclinic_requests_total",
            "finished requests",
            ("specialty", "adapter", "outcome"),
        )
        self._confidence = metrics.Histogram(
            "polyclinic_route_confidence",
            "calibrated probability of the specialty chosen",
            _CONFIDENCE_BOUNDARIES,
            ("specialty",),
        )

    def record(self, outcome: Outcome) -> None:
        specialty = outcome.specialty or "none"
        adapter = outcome.adapter or "base"
        labels = {"specialty": specialty, "adapter": adapter, "outcome": outcome.outcome}
        self._requests.inc(1, labels)
        if outcome.confidence is not None:
            self._confidence.observe(outcome.confidence, {"specialty": specialty})


def _either(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
