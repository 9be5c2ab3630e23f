"""What a router replica says of itself, from what is known already: it waits for nothing."""

import dataclasses
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from adapters.catalog import BaseModelEntry
from adapters.storage.last_good import last_good_folder
from deployments.api.access.admission import Admission
from deployments.engine.request import ErrorInfo, TokenEvent
from deployments.ingress.followed import Followed, InService
from deployments.ingress.model_watch import ModelWatch
from deployments.messages import ServedModels
from deployments.reloader import Reloader
from deployments.settings import Settings
from router.classifier import Classifier
from router.policy import Thresholds

_WEIGHT = 0.05  # of the newest answer in the mean
_MAX_RETRY_S = 60


class Readiness:
    """What GET /readyz says.

    Args:
        admission: whether this router replica lets requests in.
    """

    def __init__(
        self, settings: Settings, followed: Followed, watch: ModelWatch, admission: Admission
    ) -> None:
        self._settings = settings
        self._followed = followed
        self._watch = watch
        self._admission = admission
        # /readyz is open to everybody, and problems name files: where they lie is the operator's.
        places = {settings.adapter_state, str(settings.state_path)}
        self._places = sorted(places, key=len, reverse=True)
        # A model replica names its own node's copy: the folder's name is the same on all.
        copies = {re.escape(last_good_folder(place).name) for place in places}
        self._copies = re.compile(rf"\S*({'|'.join(sorted(copies))})")

    def report(
        self, thresholds: Thresholds, refused: Sequence[str] = ()
    ) -> tuple[bool, Mapping[str, Any]]:
        """Return whether a question would be answered now, and what is loaded or the cause.

        `refused`: what of this replica's settings is not in force.
        """
        followed = self._followed
        access = {"mode": self._settings.auth.mode, "key_problem": followed.keys.problem}
        model, cause = self._watch.readiness()
        common = {
            "degraded": [*followed.problems, *refused, *(model or {}).get("degraded", ())],
            "router": self._router(thresholds),
            "access": access,
        }
        if self._admission.is_draining:
            cause = "draining: the server is stopping"
        if model is None or cause is not None:
            return False, self._shown({"cause": cause, **common})
        return True, self._shown({**model, **common})

    def _router(self, thresholds: Thresholds) -> dict[str, Any]:
        followed = self._followed
        classifier, catalog = followed.classifier.current, followed.catalog.current
        labels, with_adapter = set(classifier.specialties), set(catalog.by_specialty)
        return {
            "version": classifier.version,
            "encoder": classifier.encoder_name,
            "specialties": list(classifier.specialties),
            "without_adapter": sorted(labels - with_adapter),
            "explicit_only": sorted(with_adapter - labels),
            **dataclasses.asdict(thresholds),
            "reload_problem": followed.classifier.problem,
            "catalog_problem": followed.catalog.problem,
            "catalog_revision": catalog.revision,
        }

    def _shown(self, report: Any) -> Any:
        """Return the report without the places of the state and of its copies."""
        if isinstance(report, str):
            for place in self._places:
                report = report.replace(place, "<state_dir>")
            return self._copies.sub("<last_good>", report)
        if isinstance(report, Mapping):
            return {key: self._shown(value) for key, value in report.items()}
        if isinstance(report, list | tuple):
            return [self._shown(value) for value in report]
        return report


class Served:
    """What the API is told of both, put together when one changes and not for every request."""

    def __init__(
        self,
        settings: Settings,
        base: BaseModelEntry,
        router: Reloader[Classifier],
        catalog: Reloader[InService],
    ) -> None:
        self._router, self._catalog = router, catalog
        self._of: tuple[Classifier, InService] | None = None
        self._models = ServedModels(
            base_model=settings.base_model,
            adapters=(),
            specialties=(),
            default_output_tokens=settings.engine.default_output_tokens,
            max_output_tokens=settings.engine.max_output_tokens,
            started_at=int(time.time()),
            repetition_penalty=base.repetition_penalty,
            no_repeat_ngram_size=base.no_repeat_ngram_size,
            loop_words=base.loop_words,
            max_input_tokens=settings.engine.max_input_tokens,
        )

    @property
    def models(self) -> ServedModels:
        classifier, in_service = self._router.current, self._catalog.current
        if self._of != (classifier, in_service):
            specialties = {*classifier.specialties, *in_service.by_specialty}
            self._models = dataclasses.replace(
                self._models,
                adapters=in_service.cards,
                specialties=tuple(sorted(specialties)),
            )
            self._of = (classifier, in_service)
        return self._models


class WaitEstimate:
    """Answers in progress beyond the rows wait for as many to end. One event loop uses it."""

    def __init__(self) -> None:
        self._service_s: float | None = None

    def saw(self, event: TokenEvent) -> None:
        """Take the time of an answer that has ended into the mean."""
        total_s, queue_s = event.timings.total_s, event.timings.queue_s
        if event.finish_reason is None or event.error is not None or total_s is None:
            return
        took_s = max(0.0, total_s - (queue_s or 0.0))
        known = self._service_s
        self._service_s = took_s if known is None else known + _WEIGHT * (took_s - known)

    def wait_s(self, num_in_progress: int, num_rows: int) -> float:
        """Return the predicted wait of the last of them; 0 before an answer has ended."""
        return max(0, num_in_progress - num_rows) * (self._service_s or 0.0) / num_rows


def too_long(wait_s: float, limit_s: float, num_in_progress: int) -> ErrorInfo | None:
    """Return the refusal of a request that would wait longer than `limit_s`; None below that."""
    if wait_s <= limit_s:
        return None
    retry_s = min(_MAX_RETRY_S, max(1, math.ceil(wait_s - limit_s)))
    return ErrorInfo(
        "queue_full",
        f"{num_in_progress} requests are in progress, and an answer would begin in about "
        f"{wait_s:.0f} s, later than {limit_s:g} s: try again in {retry_s} s",
        retry_after_s=retry_s,
    )
