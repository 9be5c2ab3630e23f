"""What keys use on one of several router replicas, which holds leases of a ledger.

A request is let in from the lease, without a word to anybody; only where that is used up the ledger
is asked. While it cannot be reached, each replica lets in its share, the limit divided by the
number of router replicas: never more, and no request waits for it.
"""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Iterable
from typing import Protocol

from deployments.api.access.limit_ledger import (
    Claims,
    Grants,
    KeyClaim,
    KeyGrant,
    RateClaim,
    RateGrant,
    Turn,
    leased_ahead,
)
from deployments.api.access.rate_limits import Excess, KeyUsage, Limits, TokenBucket, UsageTable

logger = logging.getLogger(__name__)

BEAT_S = 1.0  # between two messages to the ledger while something is leased
TIMEOUT_S = 0.5  # of one message; then this replica's share counts
# A refusal stands for so long before the ledger is asked again for the same key.
REFUSED_S = 0.1
# Another replica may just be giving back what this one needs.
_PAUSE_S = 0.02
_NUM_TRIES = 2
# A key that was not used for so long is forgotten: its buckets are full again.
_FORGET_S = 60.0


class Ledger(Protocol):
    """How the ledger is reached."""

    async def exchange(self, session: str, turn: Turn, claims: Claims) -> Grants:
        """As LimitLedger.exchange. Any exception: it cannot be reached."""


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

    def claim(self, wanted: int, capacity: int | None) -> RateClaim:
        if self._share is None or capacity is None:
            return RateClaim(self._lease, wanted)
        part = self._part(capacity)
        return RateClaim(self._lease, wanted, min(self._owed, part - self._share.level(part)))

    def granted(self, grant: RateGrant | None) -> None:
        self._share, self._is_known = None, True
        if grant is None:
            self._lease = 0.0
        else:
            self._lease += grant.change
            self._rest = TokenBucket(self._clock, grant.left)

    @property
    def is_idle(self) -> bool:
        return not self._lease

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
        return KeyClaim(
            limits,
            self._leased_requests.claim(self.num_waiting + requests_ahead, rate),
            self._leased_tokens.claim(tokens_ahead, tokens),
            self.num_running,
            self.num_running + self.num_waiting + slots_ahead,
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


class SharedUsageTable(UsageTable):
    """The usage of every key on this replica. One event loop uses it.

    Args:
        num_replicas: of the router.
        clock: seconds, monotonic.
    """

    def __init__(self, ledger: Ledger, num_replicas: int, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._ledger = ledger
        self._num_replicas = num_replicas
        self._session = uuid.uuid4().hex
        self._turn = Turn(0, 0)
        self._shared: dict[str, SharedKeyUsage] = {}
        self._is_away = False
        self._running: asyncio.Task[None] | None = None
        self._due: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        """Whether the ledger could not be reached, so that this replica's share counts."""
        return self._is_away

    def usage(self, key_id: str) -> SharedKeyUsage:
        if key_id not in self._shared:
            self._shared[key_id] = SharedKeyUsage(self._clock, self._num_replicas, self._ask)
        return self._shared[key_id]

    def forget_all_but(self, key_ids: Iterable[str]) -> None:
        """Do nothing: what is not used is given back, and forgotten then."""

    async def admit(self, usage: KeyUsage, limits: Limits) -> Excess | None:
        assert isinstance(usage, SharedKeyUsage)
        usage.limits, usage.is_used, usage.used_at = limits, True, self._clock()
        if self._is_away:
            usage.use_share()
        excess = usage.admit(limits)
        if excess is None or self._is_away or self._clock() < usage.refused_until:
            return excess
        usage.num_waiting += 1
        try:
            return await self._ask_for(usage, limits)
        finally:
            usage.num_waiting -= 1

    async def _ask_for(self, usage: SharedKeyUsage, limits: Limits) -> Excess | None:
        excess: Excess | None = None
        for attempt in range(_NUM_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_S)
            await self.exchanged()
            excess = usage.admit(limits)
            if excess is None or self._is_away:
                return excess
        usage.refused_until = self._clock() + REFUSED_S
        return excess

    def forget_unused(self) -> None:
        """Forget keys that were not used for a minute."""
        before = self._clock() - _FORGET_S
        self._shared = {
            key: usage
            for key, usage in self._shared.items()
            if not usage.is_idle or usage.used_at > before
        }

    async def exchanged(self) -> None:
        """Return after an exchange with the ledger that began after this call."""
        self._ask()
        assert self._due is not None
        await asyncio.shield(self._due)

    def _ask(self) -> None:
        if self._due is None:
            self._due = asyncio.create_task(self._exchange(self._running))

    async def _exchange(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._due = self._due, None
        usages = {key: usage for key, usage in self._shared.items() if not usage.is_idle}
        claims = {key: usage.claim() for key, usage in usages.items()}
        self._turn = turn = Turn(self._turn.number + 1, self._turn.heard)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                grants = await self._ledger.exchange(self._session, turn, claims)
        except Exception as error:
            self._lose(error)
            return
        self._turn = Turn(turn.number, turn.number)
        if self._is_away:
            logger.info("the limits' ledger is there again")
            self._is_away = False
        for key, grant in grants.items():
            usages[key].granted(grant)

    def _lose(self, error: Exception) -> None:
        if not self._is_away:
            logger.warning(
                "the limits' ledger does not answer (%s): this replica lets in its share, one of "
                "%d, of what a key may use",
                type(error).__name__,
                self._num_replicas,
            )
        self._is_away = True
        for usage in self._shared.values():
            usage.use_share()

    def start(self) -> None:
        """Keep the leases, and look for the ledger while it is away. An event loop is running."""
        self._beating = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            self.forget_unused()
            await self.exchanged()

    async def close(self) -> None:
        """Stop; what is leased comes back by itself."""
        tasks = [t for t in (self._beating, self._due, self._running) if t is not None]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
