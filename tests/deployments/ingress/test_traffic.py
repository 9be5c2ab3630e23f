"""Counts, windows and percentiles of one router replica, and their sum over several."""

import random
import statistics

import pytest

from deployments.engine.request import ErrorInfo, FinishReason, Timings, TokenEvent
from deployments.ingress.operator import described, summed
from deployments.ingress.traffic import TrafficLog
from deployments.messages import Outcome


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> TrafficLog:
    return TrafficLog(clock)


def event(
    num_tokens: int,
    *,
    first_s: float | None = None,
    total_s: float | None = None,
    ended: FinishReason | None = None,
    error: ErrorInfo | None = None,
) -> TokenEvent:
    return TokenEvent("id", "", num_tokens, 7, Timings(0.0, first_s, total_s), ended, error)


def answer(log: TrafficLog, first_s: float, total_s: float, num_tokens: int = 1) -> None:
    log.watch().saw(event(num_tokens, first_s=first_s, total_s=total_s, ended=FinishReason.STOP))


def test_an_empty_log_has_no_percentiles(log: TrafficLog) -> None:
    report = described(log.snapshot())
    assert report["num_requests"] == 0
    assert report["first_token_ms"] == {"n": 0, "p50": None, "p95": None}
    assert report["confidence"] == [0] * 10


def test_requests_are_counted_by_specialty_adapter_and_outcome(log: TrafficLog) -> None:
    for _ in range(2):
        log.record(Outcome("neurology", "neurology", "stop", 0.9))
    log.record(Outcome(None, None, "queue_full"))
    assert described(log.snapshot())["requests"] == [
        {"specialty": "neurology", "adapter": "neurology", "outcome": "stop", "count": 2},
        {"specialty": None, "adapter": None, "outcome": "queue_full", "count": 1},
    ]


def test_confidence_falls_into_ten_bins_and_one_is_in_the_last(log: TrafficLog) -> None:
    for confidence in (0.0, 0.09, 0.1, 0.55, 0.999, 1.0):
        log.record(Outcome("neurology", "neurology", "stop", confidence))
    log.record(Outcome("neurology", "neurology", "stop", None))
    assert log.snapshot()["confidence"] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]


def test_percentiles_are_within_five_percent(log: TrafficLog) -> None:
    draw = random.Random(3)
    times = [draw.lognormvariate(-1, 0.8) for _ in range(2000)]
    for seconds in times:
        answer(log, seconds, 10 * seconds)
    report = described(log.snapshot())
    exact = statistics.quantiles(times, n=100, method="inclusive")
    assert report["first_token_ms"]["n"] == 2000
    assert report["first_token_ms"]["p50"] == pytest.approx(1000 * exact[49], rel=0.05)
    assert report["first_token_ms"]["p95"] == pytest.approx(1000 * exact[94], rel=0.05)
    assert report["total_ms"]["p50"] == pytest.approx(10_000 * exact[49], rel=0.05)


def test_old_times_leave_the_window(log: TrafficLog, clock: Clock) -> None:
    answer(log, 8.0, 9.0)
    clock.now_s += 400
    answer(log, 0.1, 0.2)
    first = described(log.snapshot())["first_token_ms"]
    assert first["n"] == 1
    assert first["p50"] == pytest.approx(100, rel=0.05)


def test_a_failed_answer_has_no_time(log: TrafficLog) -> None:
    lost = ErrorInfo("replica_lost", "lost")
    log.watch().saw(event(3, first_s=0.1, ended=FinishReason.ERROR, error=lost))
    assert described(log.snapshot())["first_token_ms"]["n"] == 0
    assert log.snapshot()["num_tokens"] == 3


def test_tokens_count_once_while_they_are_generated(log: TrafficLog, clock: Clock) -> None:
    watch = log.watch()
    watch.saw(event(4))
    clock.now_s += 1
    watch.saw(event(10))
    watch.saw(event(10, ended=FinishReason.STOP))
    clock.now_s += 4
    assert log.snapshot()["num_tokens"] == 10
    assert described(log.snapshot())["tokens_per_s"] == 2.0  # ten in the five seconds it lives
    clock.now_s += 55
    assert log.snapshot()["num_tokens"] == 6, "the first four are more than a minute old"
    clock.now_s += 60
    assert log.snapshot()["num_tokens"] == 0


def test_memory_stays_bounded(log: TrafficLog, clock: Clock) -> None:
    for _ in range(20_000):
        clock.now_s += 1
        answer(log, 0.1, 0.2)
    assert len(log._tokens) <= 61
    assert len(log._slots) <= 11


def test_several_replicas_add_up(clock: Clock) -> None:
    logs = [TrafficLog(clock) for _ in range(2)]
    clock.now_s += 10
    for seconds, log in zip((0.1, 0.4), logs, strict=True):
        for _ in range(5):
            answer(log, seconds, seconds)
            log.record(Outcome("neurology", "neurology", "stop", 0.95))
    report = described(summed(log.snapshot() for log in logs))
    assert report["num_requests"] == 10
    assert report["confidence"][9] == 10
    assert report["tokens_per_s"] == 1.0
    assert report["first_token_ms"]["n"] == 10
    assert report["first_token_ms"]["p50"] == pytest.approx(100, rel=0.05)
    assert report["first_token_ms"]["p95"] == pytest.approx(400, rel=0.05)


def test_the_sum_of_nothing_is_nothing() -> None:
    assert described(summed([]))["num_requests"] == 0
