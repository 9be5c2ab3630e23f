"""Questions that routers die of are not given to one router after the other.

A router takes all its requests along when it dies, and nobody knows which of them was the cause. So
each is asked once more (proxy_errors.py). One that was there at two deaths is asked alone for a
minute, so that the next death is known to be its own, and then only once; after a third death it is
kept away for a while. An answer clears it. Only a keyed digest of a question is kept.
"""

import asyncio
import contextlib
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable

from deployments.ingress.quarantine import QUARANTINE_S

SUSPECT = 2  # deaths
GUILTY = 3
ALONE_S = 60.0  # after its latest death, where hundreds were there and each is asked alone
WAIT_S = 10.0  # at most, until other suspects have been asked
_PAUSE_S = 60.0  # without a second try, after one was lost as well: its cause may come again
_MAX_KEPT = 4096


class OthersFirst(Exception):
    """Other suspects are being asked."""


class RouterDeaths:
    """Know which questions were there when routers died. One event loop uses it.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._seen: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # deaths, the latest
        self._no_repeat_until = 0.0
        self._alone = asyncio.Lock()

    @property
    def are_known(self) -> bool:
        """Return whether any question is under suspicion."""
        return bool(self._seen)

    def digest(self, path: str, body: bytes) -> bytes:
        return hmac.digest(self._key, path.encode() + b"\0" + body, hashlib.sha256)

    def count(self, question: bytes | None) -> int:
        """Return how many deaths a question (its digest; None: no matter which) was there at, as
        far as they count."""
        deaths, latest = (0, 0.0) if question is None else self._seen.get(question, (0, 0.0))
        return deaths if self._clock() < latest + QUARANTINE_S else 0

    def seconds_left(self, question: bytes | None) -> float:
        """Return how long a question is kept away yet; 0 if it may be asked."""
        if question is None or self.count(question) < GUILTY:
            return 0.0
        return self._seen[question][1] + QUARANTINE_S - self._clock()

    def saw(self, question: bytes, count: int) -> None:
        """Note that a question was there at so many deaths, all in all. The same death may be
        noted several times, for several clients."""
        self._seen[question] = (max(count, self.count(question)), self._clock())
        self._seen.move_to_end(question)
        while len(self._seen) > _MAX_KEPT:
            self._seen.popitem(last=False)

    def saw_answer(self, question: bytes | None) -> None:
        """Forget the deaths that a question was there at: it was not their cause."""
        if question is not None:
            self._seen.pop(question, None)

    @property
    def may_repeat(self) -> bool:
        return self._clock() >= self._no_repeat_until

    def saw_repeat_lost(self) -> None:
        self._no_repeat_until = self._clock() + _PAUSE_S

    def _is_asked_alone(self, question: bytes | None) -> bool:
        if question is None or self.count(question) != SUSPECT:
            return False
        return self._clock() < self._seen[question][1] + ALONE_S

    @contextlib.asynccontextmanager
    async def turn(self, question: bytes | None) -> AsyncIterator[None]:
        """Wait until a question may be asked: a suspect alone.

        Raises:
            OthersFirst: others have been asked for WAIT_S.
        """
        if not self._is_asked_alone(question):
            yield
            return
        try:
            async with asyncio.timeout(WAIT_S):
                await self._alone.acquire()
        except TimeoutError:
            raise OthersFirst from None
        try:
            yield
        finally:
            self._alone.release()
