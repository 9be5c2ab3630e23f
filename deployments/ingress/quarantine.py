"""Questions that a replica died of are not given to one replica after the other.

A replica takes all its answers along when it dies, and nobody knows which of them was the cause. So
each is tried once more; one that was there at two deaths and never answered in between is kept away
from the replicas for a while. Only a keyed digest of it is kept.
"""

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

from deployments.api.access.rate_limits import TokenBucket
from deployments.messages import GenerateRequest

QUARANTINE_S = 600.0
MAX_DEATHS = 2
_MAX_KEPT = 4096
_SAME_DEATH_S = 5.0  # after which no call comes to a replica that has died


class _Deaths:
    """Those that one question was there at."""

    def __init__(self) -> None:
        self.count = 0
        self.latest_at = 0.0

    def count_one(self, now: float) -> None:
        """Count a death, unless it is the latest one again: the same question of another client was
        there too, or a retry came to the replica before it was gone."""
        if not self.count or now - self.latest_at >= _SAME_DEATH_S:
            self.count += 1
            self.latest_at = now


class Quarantine:
    """One event loop uses it.

    Args:
        retries_per_minute: of all calls together, so that a series of deaths does not multiply the
            load on the replicas that are left.
        clock: seconds, monotonic.
    """

    def __init__(
        self, retries_per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._rate = retries_per_minute
        self._bucket = TokenBucket(clock)
        self._key = secrets.token_bytes(32)
        self._deaths: OrderedDict[bytes, _Deaths] = OrderedDict()

    def seconds_left(self, call: GenerateRequest) -> float:
        """Return how long this call is kept away yet; 0 if it may be sent."""
        if not self._deaths:
            return 0.0
        deaths = self._deaths.get(self._digest(call))
        if deaths is None or deaths.count < MAX_DEATHS:
            return 0.0
        return max(0.0, deaths.latest_at + QUARANTINE_S - self._clock())

    def saw_death(self, call: GenerateRequest) -> None:
        """Count that a replica died while it had this call."""
        digest, now = self._digest(call), self._clock()
        deaths = self._deaths.pop(digest, None)
        if deaths is None or now - deaths.latest_at > QUARANTINE_S:
            deaths = _Deaths()
        self._deaths[digest] = deaths
        deaths.count_one(now)
        while len(self._deaths) > _MAX_KEPT:
            self._deaths.popitem(last=False)

    def saw_answer(self, call: GenerateRequest) -> None:
        """Forget the deaths that this call was there at: it was not their cause."""
        if self._deaths:
            self._deaths.pop(self._digest(call), None)

    def may_retry(self) -> bool:
        """Take one retry from the budget, if there is one left."""
        if self._bucket.level(self._rate) < 1:
            return False
        self._bucket.take(1)
        return True

    def _digest(self, call: GenerateRequest) -> bytes:
        text = repr((call.turns, call.continues, call.adapter, call.adapter_version, call.sampling))
        return hmac.digest(self._key, text.encode(errors="surrogatepass"), hashlib.sha256)
