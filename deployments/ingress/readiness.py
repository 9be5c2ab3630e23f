"""What GET /readyz says, from what is known already: it asks nobody and waits for nothing."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deployments.api.access.admission import Admission
from deployments.ingress.followed import Followed
from deployments.ingress.model_watch import ModelWatch
from deployments.settings import Settings
from router.policy import Thresholds


class Readiness:
    """
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
        """Return the report without the places of the state."""
        if isinstance(report, str):
            for place in self._places:
                report = report.replace(place, "<state_dir>")
            return report
        if isinstance(report, Mapping):
            return {key: self._shown(value) for key, value in report.items()}
        if isinstance(report, list | tuple):
            return [self._shown(value) for value in report]
        return report
