"""Series stay bounded, however many adapters and versions come and go."""

import threading
from typing import Any, cast

import pytest
from ray.util.metrics import Metric

from deployments.engine.request import Drafts, ErrorInfo, FinishReason, Timings, TokenEvent
from deployments.ingress.metrics import RouteMetrics
from deployments.messages import Outcome
from deployments.model.adapter_manager import AdapterManager
from deployments.model.adapter_metrics import AdapterMetrics
from deployments.model.answers import AnswerMetrics
from deployments.observe.labels import MAX_NAMES, OTHER, BoundedNames

Series = set[tuple[str, frozenset[tuple[str, str]]]]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Series:
    """The series that Ray would keep: a metric and its labels, once recorded here: a replica of
    another test may still be measured on a thread of its own."""
    seen: Series = set()
    own = threading.get_ident()

    def record(self: Any, value: float, tags: dict[str, str] | None = None) -> None:
        final = self._get_final_tags(tags)
        self._validate_tags(final)
        if threading.get_ident() == own:
            seen.add((self.info["name"], frozenset(final.items())))

    monkeypatch.setattr(Metric, "_record", record)
    return seen


def answered(num_tokens: int = 5) -> TokenEvent:
    return TokenEvent("r", "", num_tokens, 7, Timings(0.1, 0.2, 0.5), FinishReason.STOP)


def test_a_thousand_versions_add_no_series(registry: Series) -> None:
    measured = AnswerMetrics()
    for state in ("active", "canary", "leaving"):
        measured.record("derm", state, answered())
    before = set(registry)
    assert len(before) == 3 * 5  # two kinds of tokens, three times
    for number in range(1000):  # each is tried, promoted and leaves
        for state in ("canary", "active", "leaving"):
            measured.record("derm", state, answered(number % 7 + 1))
    assert registry == before


def test_thousands_of_adapters_share_what_is_left(registry: Series) -> None:
    measured, routes = AnswerMetrics(), RouteMetrics()
    for number in range(2000):
        name = f"adapter-{number}"
        measured.record(name, "active", answered())
        routes.record(Outcome(name, name, "stop", 0.9))
    adapters = {dict(labels)["adapter"] for name, labels in registry if "ttft" in name}
    assert adapters == {*(f"adapter-{n}" for n in range(MAX_NAMES)), OTHER}
    assert len(registry) == (MAX_NAMES + 1) * (5 + 2)
    before = len(registry)
    measured.record("adapter-3", "active", answered())  # which has its own, still
    measured.record("adapter-1999", "active", answered())
    assert len(registry) == before


class Versions:
    """Stands for an AdapterManager: one adapter, whose versions come and go."""

    num_evictions = 0

    def __init__(self) -> None:
        self.now: list[tuple[str, str, str, int]] = []

    def measure(self) -> tuple[dict[str, int], list[tuple[str, float]]]:
        return {"device": len(self.now)}, [(name, 0.1) for name, *_ in self.now]

    def answers_by_version(self) -> list[tuple[str, str, str, int]]:
        return self.now

    def residency(self) -> dict[str, int]:
        self.num_evictions += 1
        return {"adapter_hits": self.num_evictions, "adapter_waits": 0}


def test_the_series_of_a_version_end_with_it(registry: Series) -> None:
    """Ray drops a gauge that is not set again; all else stays for as long as its node runs."""
    versions = Versions()
    measured = AdapterMetrics(cast(AdapterManager, versions))
    lasting: Series = set()
    for number in range(1000):
        versions.now = [("derm", f"{number}", "active", 5), ("derm", f"{number + 1}", "canary", 1)]
        registry.clear()
        measured.sample()
        answers = {dict(labels)["version"] for name, labels in registry if "answers" in name}
        assert answers == {f"{number}", f"{number + 1}"}
        lasting |= {series for series in registry if "version_answers" not in series[0]}
    assert {name for name, _ in lasting} == {
        "polyclinic_adapter_resident",
        "polyclinic_adapter_load_s",
        "polyclinic_adapter_evictions_total",
        "polyclinic_adapter_leases_total",
    }
    assert len(lasting) == 4


def test_adapters_without_a_series_of_their_own_have_none_for_their_versions(
    registry: Series,
) -> None:
    versions = Versions()
    versions.now = [(f"adapter-{number}", "1", "active", 5) for number in range(2000)]
    AdapterMetrics(cast(AdapterManager, versions)).sample()
    assert sum("version_answers" in name for name, _ in registry) == MAX_NAMES


def test_a_name_keeps_its_value() -> None:
    names = BoundedNames(limit=2)
    assert [names.of(name) for name in ("a", "b", "c", "a", "d", "b")] == [
        *("a", "b", OTHER, "a", OTHER, "b")
    ]


def test_an_answer_without_a_token_is_measured(registry: Series) -> None:
    lost = ErrorInfo("decoder_failed", "it failed")
    event = TokenEvent("r", "", 0, 7, Timings(), FinishReason.ERROR, lost)
    AnswerMetrics().record(None, "active", event)
    assert {name for name, _ in registry} == {"polyclinic_tokens_total"}
    assert {dict(labels)["adapter"] for _, labels in registry} == {"base"}


def test_guessed_tokens_are_counted_by_what_became_of_them(registry: Series) -> None:
    event = TokenEvent("r", "", 9, 7, Timings(), FinishReason.STOP, drafts=Drafts(12, 5))
    AnswerMetrics().record("derm", "active", event)
    found = {dict(labels)["result"] for name, labels in registry if "draft" in name}
    assert found == {"accepted", "rejected"}


def test_tokens_that_were_not_read_are_counted_apart(registry: Series) -> None:
    timings = Timings(0.1, 0.2, 0.5)
    event = TokenEvent("r", "", 1, 7, timings, FinishReason.STOP, num_cached_tokens=5)
    AnswerMetrics().record("derm", "active", event)
    assert "polyclinic_cached_prompt_tokens_total" in {name for name, _ in registry}
