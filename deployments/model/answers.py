"""What is measured, recorded and traced of one answer of a model replica; no word of a text."""

import logging
import time
from typing import TYPE_CHECKING

from ray.serve import metrics

from deployments.engine.request import FinishReason, TokenEvent
from deployments.messages import GenerateRequest
from deployments.observe import tracing
from deployments.observe.labels import BoundedNames
from deployments.observe.records import log_request

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger(__name__)

# Seconds. First token and queue: from a warm GPU to a busy CPU; per token: from 1 ms to 1 s.
_WAIT_BOUNDARIES_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
_TOKEN_BOUNDARIES_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1]
_LABELS = ("adapter", "state")
# A lease that takes longer waited for the adapter's load.
_LOAD_NS = 1_000_000
_GOOD = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.LOOP)


class AnswerMetrics:
    """What a model replica measures of its answers, for Prometheus.

    The label `state` says how the version that answered was in service, and not which version it
    was: an adapter may have thousands of them, and their series would never end.
    """

    def __init__(self) -> None:
        self._adapters = BoundedNames()
        self._batch_rows = metrics.Gauge(
            "polyclinic_batch_rows", description="rows being decoded together"
        )
        self._waiting = metrics.Gauge(
            "polyclinic_requests_waiting", "accepted requests whose first step has not run"
        )
        self._ttft = metrics.Histogram(
            "polyclinic_ttft_s", "acceptance to first token", _WAIT_BOUNDARIES_S, _LABELS
        )
        self._tpot = metrics.Histogram(
            "polyclinic_tpot_s", "mean time per later token", _TOKEN_BOUNDARIES_S, _LABELS
        )
        self._queue = metrics.Histogram(
            "polyclinic_queue_wait_s", "acceptance to first step", _WAIT_BOUNDARIES_S, _LABELS
        )
        self._tokens = metrics.Counter(
            "polyclinic_tokens_total", "prompt and generated tokens", ("kind", *_LABELS)
        )

        self._cached = metrics.Counter(
            "polyclinic_cached_prompt_tokens_total",
            "prompt tokens not read, since a row held them",
            _LABELS,
        )
        self._drafts = metrics.Counter(
            "polyclinic_draft_tokens_total",
            "tokens guessed from prompts and answers",
            ("result", *_LABELS),
        )

    def sample(self, num_running: int, num_waiting: int) -> None:
        """Set the gauges; Ray drops those that are not set again and again."""
        self._batch_rows.set(num_running)
        self._waiting.set(num_waiting)

    def record(self, adapter: str | None, state: str, event: TokenEvent) -> None:
        """Record an answer by its terminal event."""
        label = {"adapter": self._adapters.of(adapter or "base"), "state": state}
        self._tokens.inc(event.num_prompt_tokens or 0, {"kind": "prompt", **label})
        if event.num_cached_tokens:
            self._cached.inc(event.num_cached_tokens, label)
        num_guessed, num_accepted = event.drafts
        for result, count in (("accepted", num_accepted), ("rejected", num_guessed - num_accepted)):
            if count:
                self._drafts.inc(count, {"result": result, **label})
        if event.num_tokens:
            self._tokens.inc(event.num_tokens, {"kind": "generated", **label})
        timings = event.timings
        if timings.queue_s is not None:
            self._queue.observe(timings.queue_s, label)
        if timings.first_token_s is None:
            return
        self._ttft.observe(timings.first_token_s, label)
        if timings.total_s is not None and event.num_tokens > 1:
            later_s = timings.total_s - timings.first_token_s
            self._tpot.observe(later_s / (event.num_tokens - 1), label)


class AnswerWatch:
    """Sees one answer from the call to its end; `end` must follow, however that comes.

    Args:
        is_logged: whether it gets a record.
    """

    def __init__(self, call: GenerateRequest, measured: AnswerMetrics, is_logged: bool) -> None:
        self._call = call
        self._measured = measured
        self._is_logged = is_logged
        self._state = "active"
        self._latest: TokenEvent | None = None
        self._span: Span | None = None
        self._began_ns = self._accepted_ns = 0
        if call.trace_context is not None and tracing.is_on():
            self._span = tracing.begin(
                "generate",
                call.trace_context,
                is_server=True,
                attributes={
                    "polyclinic.request_id": call.request_id,
                    "polyclinic.adapter": call.adapter,
                    "polyclinic.version": call.adapter_version,
                },
            )
            self._began_ns = time.time_ns()

    def leased(self, state: str) -> None:
        """The adapter's version is on the device; `state`: how it is in service."""
        self._state = state
        if self._span is not None:
            self._add_load(error=None)

    def accepted(self) -> None:
        """The engine gets it now."""
        if self._span is not None:
            self._accepted_ns = time.time_ns()

    def saw(self, event: TokenEvent) -> None:
        self._latest = event
        if event.finish_reason is not None:
            self._measured.record(self._call.adapter, self._state, event)

    def failed(self, event: TokenEvent) -> None:
        """It was refused, or its adapter could not be loaded."""
        self._latest = event
        if self._span is not None and not self._accepted_ns and event.error is not None:
            self._add_load(event.error.code)

    def end(self) -> None:
        if self._span is not None:
            self._end_span()
        if self._is_logged:
            call, latest = self._call, self._latest
            fields: dict[str, object] = {"outcome": self._outcome, "adapter": call.adapter}
            if latest is not None:
                timings = latest.timings
                fields |= {
                    "num_prompt_tokens": latest.num_prompt_tokens,
                    "num_tokens": latest.num_tokens,
                    "queue_s": _rounded(timings.queue_s),
                    "first_token_s": _rounded(timings.first_token_s),
                    "total_s": _rounded(timings.total_s),
                }
            fields["version"] = call.adapter_version
            log_request(logger, call.request_id, "generate", **fields)

    @property
    def _outcome(self) -> str:
        latest = self._latest
        if latest is None or latest.finish_reason is None:
            return str(FinishReason.CANCELLED)
        return latest.error.code if latest.error else str(latest.finish_reason)

    def _end_span(self) -> None:
        latest, now_ns = self._latest, time.time_ns()
        is_good = latest is not None and latest.finish_reason in _GOOD
        error = None if is_good else self._outcome
        if self._accepted_ns:
            self._add_phases(now_ns, error)
        attributes: dict[str, tracing.Value | None] = {"polyclinic.outcome": self._outcome}
        if latest is not None:
            attributes["polyclinic.num_prompt_tokens"] = latest.num_prompt_tokens
            attributes["polyclinic.num_tokens"] = latest.num_tokens
        tracing.end(self._span, error, end_ns=now_ns, attributes=attributes)

    def _add_phases(self, now_ns: int, error: str | None) -> None:
        """Add what the engine did, as far as it came: `error` is that of the last phase."""
        begins, latest = self._accepted_ns, self._latest
        if latest is None:  # how far it came is told with the first event
            tracing.child(self._span, "engine", begins, now_ns, error)
            return
        timings = latest.timings
        for name, seconds in (("queue", timings.queue_s), ("prefill", timings.first_token_s)):
            if seconds is None:
                tracing.child(self._span, name, begins, now_ns, error)
                return
            ends_ns = self._accepted_ns + round(seconds * 1e9)
            tracing.child(self._span, name, begins, ends_ns)
            begins = ends_ns
        tracing.child(self._span, "decode", begins, now_ns, error)

    def _add_load(self, error: str | None) -> None:
        now_ns = time.time_ns()
        if self._call.adapter is not None and now_ns - self._began_ns > _LOAD_NS:
            tracing.child(self._span, "adapter_load", self._began_ns, now_ns, error)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
