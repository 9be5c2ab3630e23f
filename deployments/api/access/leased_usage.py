"""What one key may use on one of several router replicas: leases, and a share of the limit."""

from collections.abc import Callable

from deployments.api.access.limit_ledger import (
    KeyClaim,
    KeyGrant,
    RateClaim,
    RateGrant,
    leased_ahead,
)
from deployments.api.access.rate_limits import KeyUsage, Limits, TokenBucket


class LeasedBucket:
    """Implements Bucket with a lease, and while the ledger is away with this replica's share of
    the rate too.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float], num_replicas: int) -> None:
        self._clock = clock
        self._num_replicas = num_replicas
        self._lease = 0.0
        self._offered = 0.0  # of the lease, to the ledger: used meanwhile, it would be used twice
        self._rest = TokenBucket(clock, 0.0)  # what the ledger has left
        self._share: TokenBucket | None = None
        self._owed = 0.0
        self._is_known = False

    def level(self, capacity: float) -> float:
        if self._share is None:
            return self._lease
        return self._lease + self._share.level(self._part(capacity))

    def left(self, capacity: float) -> float:
        if self._share is not None:
            return self.level(capacity)
        return self._lease + max(0.0, self._rest.level(capacity))

    def take(self, amount: float) -> None:
        if self._share is None:
            self._lease -= amount
            return
        of_lease = min(amount, max(0.0, self._lease))
        self._lease -= of_lease
        self._share.take(amount - of_lease)
        self._owed += amount - of_lease

    def seconds_until(self, level: float, capacity: float) -> float:
        if self._share is None:
            return self._rest.seconds_until(level - self._lease, capacity)
        part = self._part(capacity)
        return self._share.seconds_until(min(level - self._lease, part), part)

    def use_share(self) -> None:
        """Go on without the ledger, with what is left of the lease; with one request where the
        ledger has never told of this key."""
        self._share = TokenBucket(self._clock, 0.0 if self._is_known else 1.0)
        self._owed = 0.0
        self._keep_offered()

    def claim(self, wanted: int, capacity: int | None) -> RateClaim:
        self._keep_offered()  # of a claim that did not arrive
        held = self._lease
        self._offered = max(0.0, held - wanted)
        self._lease -= self._offered
        if self._share is None or capacity is None:
            return RateClaim(held, wanted)
        part = self._part(capacity)
        return RateClaim(held, wanted, min(self._owed, part - self._share.level(part)))

    def _keep_offered(self) -> None:
        self._lease, self._offered = self._lease + self._offered, 0.0

    def granted(self, grant: RateGrant | None) -> None:
        self._share, self._is_known = None, True
        self._keep_offered()
        if grant is None:
            self._lease = 0.0
        else:
            self._lease += grant.change
            self._rest = TokenBucket(self._clock, grant.left)

    @property
    def is_idle(self) -> bool:
        return not (self._lease or self._offered)

    def _part(self, capacity: float) -> float:
        return max(1.0, capacity / self._num_replicas)


class SharedKeyUsage(KeyUsage):
    """What one key uses here.

    Args:
        ask: sends a message to the ledger soon.

    Attributes:
        limits: of the newest request.
        num_waiting: requests that wait for the ledger.
        is_used: whether a request has come since the last message.
        used_at: when the newest one came.
        refused_until: before it, the ledger is not asked again.
    """

    def __init__(
        self, clock: Callable[[], float], num_replicas: int, ask: Callable[[], None]
    ) -> None:
        super().__init__(clock)
        self._requests = self._leased_requests = LeasedBucket(clock, num_replicas)
        self._tokens = self._leased_tokens = LeasedBucket(clock, num_replicas)
        self._num_replicas = num_replicas
        self._ask = ask
        self._num_slots = 0
        self._has_share = False
        self.limits = Limits()
        self.num_waiting = 0
        self.is_used = False
        self.used_at = 0.0
        self.refused_until = 0.0

    def most_running(self, limits: Limits) -> int | None:
        if limits.max_concurrent is None:
            return None
        if self._has_share:
            return max(1, limits.max_concurrent // self._num_replicas)
        return min(limits.max_concurrent, self._num_slots)

    def end(self) -> None:
        super().end()
        limit = self.limits.max_concurrent
        if limit is not None and self._num_slots - self.num_running > 2 * self._ahead(limit):
            self._ask()

    def charge(self, num_tokens: int, limits: Limits) -> None:
        super().charge(num_tokens, limits)
        rate = limits.tokens_per_minute
        if rate is not None and self._tokens.level(rate) <= 0:
            self._ask()

    def use_share(self) -> None:
        """Go on without the ledger."""
        if not self._has_share:
            self._has_share = True
            self._num_slots = 0
            self._leased_requests.use_share()
            self._leased_tokens.use_share()

    def claim(self) -> KeyClaim:
        """Return what to say to the ledger."""
        limits = self.limits
        is_used, self.is_used = self.is_used or self.num_waiting > 0, False
        rate, tokens = limits.requests_per_minute, limits.tokens_per_minute
        requests_ahead = self._ahead(rate) if is_used else 0
        tokens_ahead = max(1, self._ahead(tokens)) if is_used else 0
        slots_ahead = self._ahead(limits.max_concurrent) if is_used else 0
        slots_wanted = self.num_running + self.num_waiting + slots_ahead
        self._num_slots = min(self._num_slots, slots_wanted)  # others may get the rest from now on
        return KeyClaim(
            limits,
            self._leased_requests.claim(self.num_waiting + requests_ahead, rate),
            self._leased_tokens.claim(tokens_ahead, tokens),
            self.num_running,
            slots_wanted,
        )

    def granted(self, grant: KeyGrant) -> None:
        """Take over the ledger's answer."""
        self._has_share = False
        self._leased_requests.granted(grant.requests)
        self._leased_tokens.granted(grant.tokens)
        # Requests that were let in meanwhile keep their slots.
        self._num_slots = max(grant.num_slots or 0, self.num_running)

    @property
    def is_idle(self) -> bool:
        """Whether the ledger need not hear of it."""
        in_use = self.num_running or self.num_waiting or self.is_used or self._num_slots
        leases = (self._leased_requests, self._leased_tokens)
        return not in_use and not self._has_share and all(lease.is_idle for lease in leases)

    def _ahead(self, limit: int | None) -> int:
        return leased_ahead(limit, self._num_replicas) if limit is not None else 0
