"""What one router replica has seen of its traffic: counts and times, never a word of a text.

Everything is bounded: counts by the catalogue, times by histograms over a moving window. Snapshots
of several replicas add up exactly, which percentiles would not.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypedDict

from deployments.engine.request import TokenEvent
from deployments.messages import Outcome

NUM_CONFIDENCE_BINS = 10
TOKENS_WINDOW_S = 60
LATENCY_WINDOW_S = 300
_LATENCY_SLOT_S = 30
# Times are counted in buckets, each 9 % wider than the one before: a percentile is within 4.5 %.
BUCKETS_PER_DOUBLING = 8

Buckets = dict[int, int]  # bucket -> count


class Snapshot(TypedDict):
    """One replica's counts, as they travel to the replica that was asked for the report."""

    uptime_s: float
    requests: dict[tuple[str | None, str | None, str], int]  # (specialty, adapter, outcome)
    confidence: list[int]  # of 10 equal bins from 0 to 1
    num_tokens: int  # generated in the last minute
    first_token: Buckets
    total: Buckets


class TrafficLog:
    """
    Args:
        now: seconds, monotonic.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started_s = now()
        self._requests: Counter[tuple[str | None, str | None, str]] = Counter()
        self._confidence = [0] * NUM_CONFIDENCE_BINS
        self._tokens: deque[list[int]] = deque(maxlen=TOKENS_WINDOW_S + 1)  # [second, tokens]
        self._slots: deque[_LatencySlot] = deque(maxlen=LATENCY_WINDOW_S // _LATENCY_SLOT_S + 1)

    def record(self, outcome: Outcome) -> None:
        self._requests[outcome.specialty, outcome.adapter, outcome.outcome] += 1
        if outcome.confidence is not None:
            last = NUM_CONFIDENCE_BINS - 1
            self._confidence[min(last, int(outcome.confidence * NUM_CONFIDENCE_BINS))] += 1

    def watch(self) -> "AnswerWatch":
        """Return the watch of one answer, which is to see every event of it."""
        return AnswerWatch(self)

    def snapshot(self) -> Snapshot:
        now = self._now()
        slots = [s for s in self._slots if now - s.begins_s < LATENCY_WINDOW_S + _LATENCY_SLOT_S]
        return {
            "uptime_s": now - self._started_s,
            "requests": dict(self._requests),
            "confidence": list(self._confidence),
            "num_tokens": sum(n for second, n in self._tokens if now - second < TOKENS_WINDOW_S),
            "first_token": added(slot.first_token for slot in slots),
            "total": added(slot.total for slot in slots),
        }

    def add_tokens(self, num_tokens: int) -> None:
        second = int(self._now())
        if not self._tokens or self._tokens[-1][0] != second:
            self._tokens.append([second, 0])
        self._tokens[-1][1] += num_tokens

    def add_answer(self, first_token_s: float | None, total_s: float | None) -> None:
        now = self._now()
        if not self._slots or now - self._slots[-1].begins_s >= _LATENCY_SLOT_S:
            self._slots.append(_LatencySlot(now))
        slot = self._slots[-1]
        if first_token_s is not None:
            slot.first_token[_bucket(first_token_s)] += 1
        if total_s is not None:
            slot.total[_bucket(total_s)] += 1


class AnswerWatch:
    """Counts tokens as they come, and times when the answer has ended without an error."""

    def __init__(self, log: TrafficLog) -> None:
        self._log = log
        self._num_tokens = 0

    def saw(self, event: TokenEvent) -> None:
        if event.num_tokens > self._num_tokens:
            self._log.add_tokens(event.num_tokens - self._num_tokens)
            self._num_tokens = event.num_tokens
        if event.finish_reason is not None and event.error is None:
            self._log.add_answer(event.timings.first_token_s, event.timings.total_s)


class _LatencySlot:
    def __init__(self, begins_s: float) -> None:
        self.begins_s = begins_s
        self.first_token: Counter[int] = Counter()
        self.total: Counter[int] = Counter()


def _bucket(seconds: float) -> int:
    return math.floor(math.log2(max(seconds, 1e-4)) * BUCKETS_PER_DOUBLING)


def added(many: Iterable[Mapping[int, int]]) -> Buckets:
    result: Counter[int] = Counter()
    for buckets in many:
        result.update(buckets)
    return dict(result)
