"""The limits of keys over all router replicas: one ledger, of which each holds small leases.

What a replica holds was taken from the key's bucket when it was leased. So while the ledger can be
asked, all replicas together never let in more than the limit, and at most a tenth of it lies unused
with replicas that do not need it: LEASED_SHARE. A limit that is too small for that is leased one
request at a time, and is exact.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from deployments.api.access.rate_limits import Limits, TokenBucket

LEASED_SHARE = 10  # of a limit, a tenth may be leased ahead, to all replicas together
LEASE_S = 3.0  # a replica that was not heard for so long has lost its leases
_FULL_S = 60.0  # in which every bucket fills


def leased_ahead(limit: int, num_replicas: int) -> int:
    """Return how much of a limit one replica may hold beyond what it needs now."""
    return limit // (LEASED_SHARE * num_replicas)


@dataclass(frozen=True, slots=True)
class RateClaim:
    """What a replica says of one rate of one key.

    held: what is left of its lease; below zero: it used more.
    wanted: what it needs to hold now.
    owed: what it used, unasked, while it could not reach the ledger.
    """

    held: float
    wanted: int
    owed: float = 0.0


@dataclass(frozen=True, slots=True)
class KeyClaim:
    """What a replica says of one key. `num_wanted`: requests that it wants to run at once."""

    limits: Limits
    requests: RateClaim
    tokens: RateClaim
    num_running: int
    num_wanted: int


@dataclass(frozen=True, slots=True)
class RateGrant:
    """The answer: what to add to the lease (below zero: it is given back), and what is left."""

    change: float
    left: float


@dataclass(frozen=True, slots=True)
class KeyGrant:
    """None: no limit. `num_slots`: requests that the replica may run at once."""

    requests: RateGrant | None
    tokens: RateGrant | None
    num_slots: int | None


class Turn(NamedTuple):
    """Which exchange of a replica it is, and the last one whose grants it got: those of a call
    that failed on its way back are taken back."""

    number: int
    heard: int


Claims = Mapping[str, KeyClaim]
Grants = dict[str, KeyGrant]


class LimitLedger:
    """Not thread-safe.

    Args:
        clock: seconds, monotonic.
        starts_full: False where another ledger was there a moment ago: a key then begins with a
            tenth of a minute's allowance, and has all of it a minute later.
    """

    def __init__(self, clock: Callable[[], float], *, starts_full: bool = True) -> None:
        self._clock = clock
        self._full_from = clock() + (0.0 if starts_full else _FULL_S)
        self._pruned_at = clock()
        self._accounts: dict[str, _Account] = {}
        self._heard: dict[str, float] = {}  # session -> when

    @property
    def num_sessions(self) -> int:
        """How many replicas have claimed something lately."""
        self._expire()
        return len(self._heard)

    def exchange(self, session: str, turn: Turn, claims: Claims) -> Grants:
        """Take over what a replica used, and lease it what it wants, as far as there is.

        Args:
            session: the replica's name.
            claims: by key id; all keys of which it holds something are among them.
        """
        self._expire()
        self._heard[session] = self._clock()
        return {
            key: self._account(key).settle(session, turn, claim) for key, claim in claims.items()
        }

    def _account(self, key: str) -> "_Account":
        if key not in self._accounts:
            is_full = self._clock() >= self._full_from
            self._accounts[key] = _Account(self._clock, starts_full=is_full)
        return self._accounts[key]

    def _expire(self) -> None:
        now = self._clock()
        for session in [s for s, at in self._heard.items() if now - at > LEASE_S]:
            del self._heard[session]
            for account in self._accounts.values():
                account.expire(session)
        if now - self._pruned_at > _FULL_S:
            self._pruned_at = now
            self._accounts = {k: a for k, a in self._accounts.items() if not a.is_as_new}


class _Account:
    """One key."""

    def __init__(self, clock: Callable[[], float], *, starts_full: bool) -> None:
        self._requests = _Rate(clock, starts_full=starts_full)
        self._tokens = _Rate(clock, starts_full=starts_full)
        self._slots: dict[str, int] = {}

    @property
    def is_as_new(self) -> bool:
        return not self._slots and self._requests.is_full and self._tokens.is_full

    def settle(self, session: str, turn: Turn, claim: KeyClaim) -> KeyGrant:
        limits = claim.limits
        return KeyGrant(
            self._requests.settle(session, turn, claim.requests, limits.requests_per_minute),
            self._tokens.settle(session, turn, claim.tokens, limits.tokens_per_minute),
            self._slots_for(session, claim, limits.max_concurrent),
        )

    def expire(self, session: str) -> None:
        self._slots.pop(session, None)
        self._requests.expire(session)
        self._tokens.expire(session)

    def _slots_for(self, session: str, claim: KeyClaim, limit: int | None) -> int | None:
        self._slots.pop(session, None)
        if limit is None:
            return None
        free = limit - sum(self._slots.values())
        slots = max(claim.num_running, min(claim.num_wanted, free))
        if slots:
            self._slots[session] = slots
        return slots


@dataclass(slots=True)
class _Lease:
    """What one replica has, as it was last heard.

    number, taken: the newest exchange, and what it took from the bucket.
    """

    held: float
    number: int
    taken: float


class _Rate:
    """One rate of one key: its bucket, and what is leased of it."""

    def __init__(self, clock: Callable[[], float], *, starts_full: bool) -> None:
        self._bucket = TokenBucket(clock)
        self._limit: int | None = None
        self._starts_full = starts_full
        self._leases: dict[str, _Lease] = {}  # by session

    @property
    def is_full(self) -> bool:
        if self._limit is None:
            return True
        no_lease = not any(lease.held for lease in self._leases.values())
        return no_lease and self._bucket.level(self._limit) >= self._limit

    def settle(
        self, session: str, turn: Turn, claim: RateClaim, limit: int | None
    ) -> RateGrant | None:
        lease = self._leases.pop(session, None)
        if limit is None:
            return None
        self._use(limit)
        if lease is None:  # one that has expired is back in the bucket
            self._bucket.take(max(0.0, claim.held))
        elif lease.number > turn.heard:  # the replica does not know of it
            self._bucket.take(-lease.taken)
        owed = min(claim.owed, max(0.0, self._bucket.level(limit)))
        debt = max(0.0, -claim.held)
        self._bucket.take(owed + debt)
        held = max(0.0, claim.held)
        there = max(0, math.floor(self._bucket.level(limit)))
        more = min(claim.wanted - held, there)
        self._bucket.take(more)
        self._leases[session] = _Lease(held + more, turn.number, owed + debt + more)
        return RateGrant(debt + more, self._bucket.level(limit))

    def expire(self, session: str) -> None:
        lease = self._leases.pop(session, None)
        if lease is not None:
            self._bucket.take(-lease.held)

    def _use(self, limit: int) -> None:
        level = self._bucket.level(limit)
        if self._limit is None and not self._starts_full:
            self._bucket.take(level - min(limit, max(1.0, limit / LEASED_SHARE)))
        self._limit = limit
