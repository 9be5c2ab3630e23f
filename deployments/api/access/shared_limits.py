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

from deployments.api.access.leased_usage import SharedKeyUsage
from deployments.api.access.limit_ledger import Claims, Grants, Turn
from deployments.api.access.rate_limits import Excess, KeyUsage, Limits, UsageTable

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
