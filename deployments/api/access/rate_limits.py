"""Limits of one key: requests and tokens a minute, and requests at the same time.

Both rates are token buckets: a bucket holds what a minute allows, fills steadily and starts full,
so a key that was idle may use a minute's allowance at once. A request takes 1 from its bucket.
Tokens (prompt and generated) are charged when the answer has ended, since their number is not known
earlier: the bucket may fall below zero, and the key then waits until it is above zero again.

Here one router replica counts for itself; shared_limits.py is for several.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from deployments.api.access.api_keys import KeyKind, KeyRecord
from deployments.api.errors import ApiError

CONCURRENT_RETRY_S = 1  # when another request of the key ends is not known


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit. Rates are per minute."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    def of(self, record: KeyRecord) -> "Limits":
        """Return the key's own limits, and these where it has none."""
        return Limits(
            record.requests_per_minute or self.requests_per_minute,
            record.tokens_per_minute or self.tokens_per_minute,
            record.max_concurrent or self.max_concurrent,
        )


@dataclass(frozen=True, slots=True)
class Excess:
    """The limit that a request exceeds. `limit` names the setting, `allowed` its value."""

    limit: str
    allowed: int
    retry_after_s: int


class Bucket(Protocol):
    """One rate of a key. `capacity` is what a minute allows."""

    def level(self, capacity: float) -> float:
        """Return what may be taken now; below zero when more was taken than there was."""

    def left(self, capacity: float) -> float:
        """Return what the key is told that it has left."""

    def take(self, amount: float) -> None: ...

    def seconds_until(self, level: float, capacity: float) -> float:
        """Return the time until it holds `level`, at the rate of `capacity` a minute."""


class TokenBucket:
    """Implements Bucket. `capacity` may change while it is in use. Not thread-safe.

    Args:
        clock: seconds, monotonic.
        level: what it holds at first; at most its capacity.
    """

    def __init__(self, clock: Callable[[], float], level: float = math.inf) -> None:
        self._clock = clock
        self._capacity: float | None = None
        self._level = level
        self._filled_at = clock()

    def level(self, capacity: float) -> float:
        now = self._clock()
        if self._capacity is None:
            self._level = min(self._level, capacity)
        elif self._capacity != capacity:  # keep the share that was left
            self._level *= capacity / self._capacity
        self._capacity = capacity
        gained = (now - self._filled_at) * capacity / 60
        self._level = min(float(capacity), self._level + gained)
        self._filled_at = now
        return self._level

    def left(self, capacity: float) -> float:
        return self.level(capacity)

    def take(self, amount: float) -> None:
        self._level -= amount

    def seconds_until(self, level: float, capacity: float) -> float:
        return max(0.0, (level - self.level(capacity)) * 60 / capacity)


class KeyUsage:
    """What one key uses on this replica."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.num_running = 0
        self._requests: Bucket = TokenBucket(clock)
        self._tokens: Bucket = TokenBucket(clock)

    def admit(self, limits: Limits) -> Excess | None:
        """Count a request, or return the limit that it exceeds. `end` must follow an admission."""
        most = self.most_running(limits)
        if limits.max_concurrent is not None and most is not None and self.num_running >= most:
            return Excess("max_concurrent", limits.max_concurrent, CONCURRENT_RETRY_S)
        rate = limits.tokens_per_minute
        if rate is not None and self._tokens.level(rate) <= 0:
            # One token more than nothing: at exactly zero the next request would be refused too.
            wait_s = self._tokens.seconds_until(1, rate)
            return Excess("tokens_per_minute", rate, math.ceil(wait_s))
        rate = limits.requests_per_minute
        if rate is not None:
            if self._requests.level(rate) < 1:
                wait_s = self._requests.seconds_until(1, rate)
                return Excess("requests_per_minute", rate, max(1, math.ceil(wait_s)))
            self._requests.take(1)
        self.num_running += 1
        return None

    def most_running(self, limits: Limits) -> int | None:
        """Return how many requests of the key may be in progress here; None: any number."""
        return limits.max_concurrent

    def end(self) -> None:
        self.num_running -= 1

    def charge(self, num_tokens: int, limits: Limits) -> None:
        if limits.tokens_per_minute is not None:
            self._tokens.level(limits.tokens_per_minute)
            self._tokens.take(num_tokens)

    def headers(self, limits: Limits) -> list[tuple[bytes, bytes]]:
        """Return `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` of the limits set.
        `reset` is the time until the bucket is full again, as in OpenAI's API: `1.25s`."""
        found: list[tuple[bytes, bytes]] = []
        for what, rate, bucket in (
            (b"requests", limits.requests_per_minute, self._requests),
            (b"tokens", limits.tokens_per_minute, self._tokens),
        ):
            if rate is None:
                continue
            remaining = max(0, math.floor(bucket.left(rate)))
            reset_s = bucket.seconds_until(rate, rate)
            found += [
                (b"x-ratelimit-limit-" + what, b"%d" % rate),
                (b"x-ratelimit-remaining-" + what, b"%d" % remaining),
                (b"x-ratelimit-reset-" + what, b"%.2fs" % reset_s),
            ]
        return found


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key it is: `scope["state"]["caller"]` of an authenticated request."""

    key_id: str
    kind: KeyKind
    usage: KeyUsage
    limits: Limits

    def charge(self, num_tokens: int) -> None:
        """Count the tokens, of prompt and answer, of an answer that has ended."""
        self.usage.charge(num_tokens, self.limits)


class UsageTable:
    """The usage of every key that was used on this replica. One event loop uses it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._usages: dict[str, KeyUsage] = {}

    def usage(self, key_id: str) -> KeyUsage:
        if key_id not in self._usages:
            self._usages[key_id] = KeyUsage(self._clock)
        return self._usages[key_id]

    async def admit(self, usage: KeyUsage, limits: Limits) -> Excess | None:
        """As KeyUsage.admit; it may ask elsewhere first."""
        return usage.admit(limits)

    def forget_all_but(self, key_ids: Iterable[str]) -> None:
        """Drop the usage of keys that are no longer valid."""
        kept = frozenset(key_ids)
        self._usages = {key: usage for key, usage in self._usages.items() if key in kept}


def too_many(excess: Excess) -> ApiError:
    """Return the refusal of a request of a key that exceeds its limit."""
    what = {
        "max_concurrent": "requests at the same time",
        "requests_per_minute": "requests a minute",
        "tokens_per_minute": "tokens a minute",
    }[excess.limit]
    return ApiError(
        429,
        "rate_limit_exceeded",
        f"this key's limit is {excess.allowed} {what} ({excess.limit}): "
        f"try again in {excess.retry_after_s} s",
        detail={"limit": excess.allowed, "limited_by": excess.limit},
        headers={"retry-after": str(excess.retry_after_s)},
    )
