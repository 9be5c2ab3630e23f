"""What a model replica measures of its answers. Units are in the names."""

from ray.serve import metrics

from deployments.engine.request import TokenEvent
from deployments.messages import GenerateRequest

# Seconds. First token and queue: from a warm GPU to a busy CPU; per token: from 1 ms to 1 s.
_WAIT_BOUNDARIES_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]
_TOKEN_BOUNDARIES_S = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1]
_LABELS = ("adapter", "version")


class AnswerMetrics:
    """Prometheus metrics by adapter and version. No text of a question or an answer enters them."""

    def __init__(self) -> None:
        self.batch_rows = metrics.Gauge(
            "polyclinic_batch_rows", description="rows being decoded together"
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
            "polyclinic_tokens_total",
            "prompt and generated tokens",
            ("kind", "adapter", "version"),
        )

    def record(self, call: GenerateRequest, event: TokenEvent) -> None:
        """Record an answer by its terminal event."""
        label = {"adapter": call.adapter or "base", "version": call.adapter_version or ""}
        self._tokens.inc(event.num_prompt_tokens or 0, {"kind": "prompt", **label})
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
