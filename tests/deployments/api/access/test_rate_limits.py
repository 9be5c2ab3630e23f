"""Rates on a clock that stands still until a test moves it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.api.access.api_keys import new_key
from deployments.api.access.rate_limits import Caller, KeyUsage, Limits, TokenBucket, UsageTable


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def headers(usage: KeyUsage, limits: Limits) -> dict[str, str]:
    found = usage.headers(limits)
    return {name.decode().removeprefix("x-ratelimit-"): value.decode() for name, value in found}


def test_a_minute_s_requests_and_then_one_at_a_time(clock: Clock) -> None:
    usage, limits = KeyUsage(clock), Limits(requests_per_minute=6)
    assert [usage.admit(limits) for _ in range(6)] == [None] * 6
    excess = usage.admit(limits)
    assert excess is not None
    assert (excess.limit, excess.allowed, excess.retry_after_s) == ("requests_per_minute", 6, 10)
    clock.now += 9.9
    assert usage.admit(limits)
    clock.now += 0.1  # what Retry-After promised
    assert usage.admit(limits) is None
    assert usage.admit(limits)


def test_refused_requests_cost_nothing(clock: Clock) -> None:
    usage, limits = KeyUsage(clock), Limits(requests_per_minute=1)
    assert usage.admit(limits) is None
    for _ in range(100):
        assert usage.admit(limits)
    clock.now += 60
    assert usage.admit(limits) is None


def test_tokens_are_charged_afterwards_and_then_waited_for(clock: Clock) -> None:
    usage, limits = KeyUsage(clock), Limits(tokens_per_minute=60)
    assert usage.admit(limits) is None
    usage.charge(90, limits)  # 30 below zero
    excess = usage.admit(limits)
    assert excess is not None
    assert (excess.limit, excess.retry_after_s) == ("tokens_per_minute", 31)
    assert headers(usage, limits) == {
        "limit-tokens": "60",
        "remaining-tokens": "0",
        "reset-tokens": "90.00s",
    }
    clock.now += 31
    assert usage.admit(limits) is None


def test_headers_say_what_is_left_and_when_it_is_full(clock: Clock) -> None:
    usage, limits = KeyUsage(clock), Limits(requests_per_minute=60, tokens_per_minute=6000)
    usage.admit(limits)
    usage.charge(100, limits)
    assert headers(usage, limits) == {
        "limit-requests": "60",
        "remaining-requests": "59",
        "reset-requests": "1.00s",
        "limit-tokens": "6000",
        "remaining-tokens": "5900",
        "reset-tokens": "1.00s",
    }
    assert headers(usage, Limits()) == {}


def test_requests_at_the_same_time(clock: Clock) -> None:
    usage, limits = KeyUsage(clock), Limits(max_concurrent=2)
    assert usage.admit(limits) is None
    assert usage.admit(limits) is None
    excess = usage.admit(limits)
    assert excess is not None
    assert (excess.limit, excess.allowed) == ("max_concurrent", 2)
    usage.end()
    assert usage.admit(limits) is None


def test_a_key_s_own_limits_come_first() -> None:
    _, record = new_key("user", requests_per_minute=5)
    defaults = Limits(requests_per_minute=50, tokens_per_minute=500, max_concurrent=7)
    assert defaults.of(record) == Limits(5, 500, 7)


def test_a_limit_that_changes_keeps_the_share_that_was_left(clock: Clock) -> None:
    bucket = TokenBucket(clock)
    assert bucket.level(100) == 100
    bucket.take(75)
    assert bucket.level(20) == 5
    assert bucket.level(200) == 50


def test_accounts_of_revoked_keys_are_dropped(clock: Clock) -> None:
    ledger = UsageTable(clock)
    first = ledger.usage("a")
    assert ledger.usage("a") is first
    ledger.forget_all_but({"b"})
    assert ledger.usage("a") is not first


def test_a_caller_is_charged_on_its_key_s_account(clock: Clock) -> None:
    usage, limits = KeyUsage(clock), Limits(tokens_per_minute=10)
    Caller("a", "user", usage, limits).charge(4)
    assert headers(usage, limits)["remaining-tokens"] == "6"


@given(
    rate=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 90), min_size=1, max_size=200),
)
def test_no_stretch_of_time_sees_more_than_a_burst_and_the_rate(
    rate: int, pauses: list[float]
) -> None:
    clock = Clock()
    usage, limits = KeyUsage(clock), Limits(requests_per_minute=rate)
    admitted: list[float] = []
    for pause in pauses:
        clock.now += pause
        if usage.admit(limits) is None:
            admitted.append(clock.now)
        else:
            wait_s = usage._requests.seconds_until(1, rate)
            assert wait_s > 0
    for first, start in enumerate(admitted):
        for count, end in enumerate(admitted[first:], start=1):
            assert count <= rate + (end - start) * rate / 60 + 1e-6
