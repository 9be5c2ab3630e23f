"""docs/operating.md against the code's metrics, the dashboard and the alerts."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
# Endings of names that say the unit, as the table writes it.
UNITS = {"_s": "seconds", "_bytes": "bytes", "_share": "share", "_confidence": "share"}
# What Prometheus adds to a histogram's name.
SUFFIXES = r"_(?:bucket|count|sum)$"


@dataclass(frozen=True, slots=True)
class Documented:
    kind: str
    unit: str
    labels: frozenset[str]


def documented_metrics() -> dict[str, Documented]:
    """The table of the page."""
    rows = re.findall(
        r"^\| `(polyclinic_\w+)` \| (\w+) \| (\w+) \|([^|]*)\|", OPERATING, re.MULTILINE
    )
    assert rows
    return {
        name: Documented(kind, unit, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, unit, labels in rows
    }


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Documented]:
    """The metrics that the replicas make, as they describe themselves to Ray."""
    from ray.util.metrics import Metric

    found: dict[str, Documented] = {}
    original = Metric.__init__

    def noted(self: Any, name: str, description: str = "", tag_keys: Any = None) -> None:
        original(self, name, description, tag_keys)
        assert description, f"{name} has no description"
        kind = next(k.__name__ for k in type(self).__mro__ if k.__module__ == "ray.util.metrics")
        found[name] = Documented(kind.lower(), "", frozenset(tag_keys or ()))

    monkeypatch.setattr(Metric, "__init__", noted)
    from deployments.ingress.metrics import RouteMetrics
    from deployments.ingress.references_source import ReferencesSource
    from deployments.model.adapter_manager import AdapterManager
    from deployments.model.adapter_metrics import AdapterMetrics
    from deployments.model.answers import AnswerMetrics
    from deployments.observe.sampling import Sampler

    for make in (RouteMetrics, AnswerMetrics, ReferencesSource):
        make()
    AdapterMetrics(cast(AdapterManager, None))  # which is asked when it is sampled
    Sampler({}).stop()
    return found


def test_the_table_is_what_the_code_makes(made: dict[str, Documented]) -> None:
    named = {
        name
        for path in (ROOT / "deployments").rglob("*.py")
        for name in re.findall(r'"(polyclinic_\w+)"', path.read_text(encoding="utf-8"))
    }
    assert set(made) == named, "a metric that no replica makes, or one that this test does not make"
    documented = documented_metrics()
    assert {n: (m.kind, m.labels) for n, m in documented.items()} == {
        n: (m.kind, m.labels) for n, m in made.items()
    }
    for name, metric in documented.items():
        assert (metric.kind == "counter") == name.endswith("_total"), name
        for ending, unit in UNITS.items():
            if name.endswith(ending):
                assert metric.unit == unit, name


def expressions() -> list[tuple[str, str]]:
    """(where, query) of every panel and alert."""
    found = []
    for file in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]:
            found += [(panel["title"], t["expr"]) for t in panel.get("targets", ())]
    return found + [(rule["alert"], rule["expr"]) for rule in alerts()]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(("where", "query"), expressions())
def test_a_query_names_metrics_and_labels_that_there_are(where: str, query: str) -> None:
    documented = documented_metrics()
    for name, selector in re.findall(r"\bray_(polyclinic_\w+)(?:\{([^}]*)\})?", query):
        metric = documented[re.sub(SUFFIXES, "", name)]
        assert name.endswith(("_bucket", "_count")) == (metric.kind == "histogram"), where
        selected = set(re.findall(r"(\w+)\s*(?:=|!)", re.sub(r'"[^"]*"', "", selector)))
        assert selected <= {*metric.labels, "application", "replica", "deployment"}, where


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    shown = {
        re.sub(SUFFIXES, "", name)
        for _, query in expressions()
        for name in re.findall(r"\bray_(polyclinic_\w+)", query)
    }
    assert shown == set(documented_metrics())


def test_every_alert_has_its_paragraph_and_no_paragraph_is_left_over() -> None:
    headings = re.findall(r"^#### (\w+)\n\n\S", OPERATING, re.MULTILINE)
    assert [rule["alert"] for rule in alerts()] == headings
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/operating.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_the_provisioning_fits_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    for file in (DEPLOY / "grafana" / "dashboards").glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert set(re.findall(r'"type": "prometheus",\s*"uid": "(\w+)"', text)) == {source["uid"]}
        ids = [panel["id"] for panel in json.loads(text)["panels"]]
        assert len(ids) == len(set(ids))


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["check config prometheus.yml", "test rules alerts_test.yml"])
def test_promtool_accepts_the_files(arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no `promtool` here: apt-get install prometheus")
    done = subprocess.run(
        [program, *arguments.split()],
        cwd=DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
