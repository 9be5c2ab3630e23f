"""Serve shell of the router: HTTP ingress, classifier, policy, and the handle to the model."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from deployments.adapter_admin import AdapterAdmin
from deployments.api.api_keys import KeyStore
from deployments.api.app import behind_front_door, create_api
from deployments.engine.request import TokenEvent
from deployments.ingress.followed_catalog import FollowedCatalog, InService
from deployments.ingress.key_watch import KeyWatch
from deployments.ingress.model_client import EventResponse, OneEvent, ServeReplicas, answer_events
from deployments.ingress.operator import ClusterReport, TrafficLog, replica_id
from deployments.ingress.router_reloading import FollowedClassifier
from deployments.messages import GenerateRequest, Outcome, ServedModels
from deployments.model.loading import open_adapter_store
from deployments.replica import tune_interpreter, use_serve_handlers
from deployments.settings import RouterLiveSettings, Settings
from deployments.strict_model import SettingsError, parse_strict
from router.classifier import Classifier
from router.policy import Route, Thresholds, decide, decide_explicit

logger = logging.getLogger(__name__)

READINESS_TIMEOUT_S = 10.0
_LANGUAGE_NAMES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish"}
# A conversation's user turns, and the request's own threshold, if it gives one.
_Asked = tuple[Sequence[str], float | None]
_CONFIDENCE_BOUNDARIES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]


class RouterReplica:
    """Implements `calls.Backend`. Small and on the CPU: several may run beside each other."""

    def __init__(self, settings: Settings, model: DeploymentHandle) -> None:
        use_serve_handlers("INFO")
        self._model = model
        self._live = RouterLiveSettings()
        self._metrics = _RouterMetrics()
        self._traffic = TrafficLog()
        self._operator = ClusterReport(model)
        self._router = FollowedClassifier(settings, lambda: self._live.reload_check_s)
        store = open_adapter_store(settings)
        self._catalog = FollowedCatalog(
            store, settings.base_model, lambda: self._live.reload_check_s
        )
        self._admin = AdapterAdmin(
            self._catalog,
            ServeReplicas(model),
            settings.base_model,
            max_rank=settings.engine.max_adapter_rank,
            num_places=settings.engine.max_adapters,
        )
        self._base_languages = store.seed.base_model(settings.base_model).languages
        # Of which classifier and which catalogue `_clinic` is: every request asks, few change it.
        self._clinic_of: tuple[Classifier, InService] | None = None
        self._clinic = ServedModels(
            base_model=settings.base_model,
            adapters=(),  # `clinic` fills these in: both may change
            specialties=(),
            default_output_tokens=settings.engine.default_output_tokens,
            max_output_tokens=settings.engine.max_output_tokens,
            started_at=int(time.time()),
        )
        self._settings = settings
        self._keys = KeyWatch(KeyStore(settings.state_path))
        tune_interpreter()
        self._router.start()
        self._keys.start()
        self._catalog.start()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        api = create_api(self, self._admin)
        return behind_front_door(
            api, self._settings, self._keys, lambda: self._live, proxy_adds_id=True
        )

    @property
    def clinic(self) -> ServedModels:
        classifier, in_service = self._router.current, self._catalog.current
        if self._clinic_of != (classifier, in_service):
            specialties = {*classifier.specialties, *in_service.by_specialty}
            self._clinic = dataclasses.replace(
                self._clinic,
                adapters=in_service.cards,
                specialties=tuple(sorted(specialties)),
            )
            self._clinic_of = (classifier, in_service)
        return self._clinic

    @property
    def limits(self) -> RouterLiveSettings:
        return self._live

    async def classify(
        self, conversations: Sequence[Sequence[str]], min_confidence: float | None = None
    ) -> list[Route]:
        """Single questions that wait at the same time share a run of the encoder."""
        asked = [(conversation, min_confidence) for conversation in conversations]
        if len(asked) == 1:
            return [await self._one_of_a_batch(asked[0])]
        return await self._routes(asked)

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.0)  # type: ignore[untyped-decorator]
    async def _one_of_a_batch(self, asked: list[_Asked]) -> list[Route]:
        return await self._routes(asked)

    async def _routes(self, asked: Sequence[_Asked]) -> list[Route]:
        classifier = self._router.current
        thresholds = self._thresholds(classifier)
        conversations = [conversation for conversation, _ in asked]
        adapters = self._catalog.current.by_specialty
        classified = await asyncio.to_thread(classifier.classify, conversations)
        return [
            decide(
                classification,
                thresholds=dataclasses.replace(
                    thresholds, min_confidence=_either(min_confidence, thresholds.min_confidence)
                ),
                adapters=adapters,
                base_languages=self._base_languages,
            )
            for classification, (_, min_confidence) in zip(classified, asked, strict=True)
        ]

    def explicit(self, specialty: str | None, question: str) -> Route:
        return decide_explicit(
            specialty,
            self._router.current.language(question),
            adapters=self._catalog.current.by_specialty,
            base_languages=self._base_languages,
        )

    def answer_language(self, route: Route) -> str | None:
        if route.notice != "language_not_supported":
            return None
        main = self._base_languages[0]
        return _LANGUAGE_NAMES.get(main, main)

    @functools.cached_property
    def _streaming(self) -> Any:
        """The model's streaming method. Kept, since Serve builds two handles to make one."""
        return self._model.generate.options(stream=True)

    @functools.cached_property
    def _answering(self) -> Any:
        return self._model.answer

    def _start(self, call: GenerateRequest) -> EventResponse:
        """Send the call to a replica that Serve picks. A whole answer is one event, for which
        Serve's plain call is cheaper than its stream."""
        if call.stream:
            streamed: EventResponse = self._streaming.remote(call)
            return streamed
        return OneEvent(self._answering.remote(call))

    async def generate(self, call: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        watch = self._traffic.watch()
        async with contextlib.aclosing(answer_events(self._start, call)) as events:
            async for event in events:
                watch.saw(event)
                yield event

    async def readiness(self) -> tuple[bool, Mapping[str, Any]]:
        classifier = self._router.current
        labels = set(classifier.specialties)
        with_adapter = set(self._catalog.current.by_specialty)
        router = {
            "version": classifier.version,
            "encoder": classifier.encoder_name,
            "specialties": list(classifier.specialties),
            "without_adapter": sorted(labels - with_adapter),
            "explicit_only": sorted(with_adapter - labels),
            **dataclasses.asdict(self._thresholds(classifier)),
            "reload_problem": self._router.problem,
            "catalog_problem": self._catalog.problem,
            "catalog_revision": self._catalog.current.revision,
        }
        access = {"mode": self._settings.auth.mode, "key_problem": self._keys.problem}
        try:
            async with asyncio.timeout(READINESS_TIMEOUT_S):
                model = await self._model.info.remote()
        except TimeoutError:
            cause = f"no model replica answered within {READINESS_TIMEOUT_S:.0f} s"
            return False, {"cause": cause, "router": router, "access": access}
        except (RayError, BackPressureError) as error:
            cause = f"the model: {type(error).__name__}"
            return False, {"cause": cause, "router": router, "access": access}
        return True, {**model, "router": router, "access": access}

    async def operator_report(self) -> Mapping[str, Any]:
        return await self._operator.report()

    def traffic(self) -> dict[str, Any]:
        """This replica's part of the operator's report; Serve calls it through a handle."""
        return {
            "replica": replica_id(),
            "catalog_revision": self._catalog.current.revision,
            "snapshot": self._traffic.snapshot(),
        }

    async def refresh_catalog(self) -> dict[str, Any]:
        """Take over a change of the adapters now; `error` says why that was not possible."""
        await asyncio.to_thread(self._catalog.refresh)
        return {"replica": f"router {replica_id()}", "error": self._catalog.problem}

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
