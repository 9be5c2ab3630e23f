"""An adapter as /v1/adapters shows it: what the catalogue says, and what each replica holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from adapters.live_catalog import AdapterVersion, LiveAdapter


def shown(adapter: LiveAdapter, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An adapter for the operator: its versions, and where those in service are."""
    residency: dict[str, dict[str, Any]] = {}
    for report in reports:
        residency[str(report["replica"])] = {
            held["version"]: {key: held[key] for key in ("tier", "answers", "load_s", "error")}
            for held in report["adapters"]
            if held["name"] == adapter.name
        }
    return {
        "name": adapter.name,
        "specialty": adapter.specialty,
        "base_model": adapter.base_model,
        "state": adapter.state,
        "reason": adapter.reason or None,
        "version": adapter.version,
        "canary": adapter.canary.model_dump() if adapter.canary else None,
        "pinned": adapter.pinned,
        "previous": list(adapter.previous),
        "versions": [_shown_version(version) for version in adapter.versions],
        "replicas": residency,
    }


def _shown_version(version: AdapterVersion) -> dict[str, Any]:
    return {
        "version": version.version,
        "sha256": version.sha256,
        "source": version.source,
        "rank": version.rank,
        "num_bytes": version.num_bytes,
        "added_at": version.added_at or None,
    }
