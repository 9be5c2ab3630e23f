"""Adapters as /v1/adapters shows them: what the catalogue says, and what each replica holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from adapters.catalog import Catalog
from adapters.versions import AdapterVersion, RegisteredAdapter


def shown(adapter: RegisteredAdapter, reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an adapter for the operator: its versions, and where those in service are."""
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
        "prompt_format": version.prompt_format,
        "added_at": version.added_at or None,
    }


def unconfirmed_of(
    catalog: Catalog,
    base_model: str,
    reports: Sequence[Mapping[str, Any]],
    unreachable: Mapping[str, str],
) -> dict[str, str]:
    """Return replica -> why it does not serve this catalogue (yet).

    Args:
        reports: what each model replica holds (ModelReplica.adapter_report).
        unreachable: replicas that run and did not answer, with the cause.
    """
    wanted = {
        (adapter.name, version.digest, adapter.pinned)
        for adapter in catalog.in_service(base_model)
        for version in adapter.served
    }
    problems = dict(unreachable)
    for report in reports:
        failed = [
            f"{a['name']} {a['version']}: {a['error']}" for a in report["adapters"] if a["error"]
        ]
        known = {(a["name"], a["digest"], a["pinned"]) for a in report["adapters"]}
        is_older = report["revision"] is not None and report["revision"] < catalog.revision
        if report["error"]:
            problems[str(report["replica"])] = str(report["error"])
        elif failed:
            problems[str(report["replica"])] = "; ".join(failed)
        elif is_older and known != wanted:
            problems[str(report["replica"])] = f"is at revision {report['revision']}"
    return problems
