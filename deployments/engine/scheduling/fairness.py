"""Share the decoder fairly between adapters, by virtual token counters. Pure Python.

Sheng et al. 2024, "Fairness in Serving Large Language Models": each client (here: each adapter,
the base counting as one) has a counter of the service that it received. The waiting client with
the least goes next. A client that comes back after a pause is lifted to the least counter among
those that wait, so that it cannot save up credit. A flood on one adapter then delays another
adapter's request no more than what is already running.
"""

from collections.abc import Collection, Iterable

# A generated token costs a whole pass over the weights, a prompt token shares one: the paper's
# weights.
PROMPT_TOKEN = 1.0
GENERATED_TOKEN = 2.0
_KEPT = 1024  # counters that are kept without looking whether they still matter


class TokenCounters:
    """Count the service received by each adapter, in weighted tokens."""

    def __init__(self) -> None:
        self._served: dict[str | None, float] = {}
        self._last_to_leave: str | None = None
        self._anyone_left = False
        self._forget_above = _KEPT

    def arrive(self, adapter: str | None, waiting: Collection[str | None]) -> None:
        """Count in a request of `adapter`; `waiting` are the adapters with requests that wait.

        Call it before the request is queued: it does nothing if `adapter` waits already.
        """
        if adapter in waiting:
            return
        self._served[adapter] = max(self.of(adapter), self._floor(waiting))

    def leave(self, adapter: str | None) -> None:
        """Note that the last waiting request of `adapter` was admitted or given up."""
        self._last_to_leave, self._anyone_left = adapter, True

    def charge(self, adapter: str | None, tokens: float) -> None:
        """Add service worth `tokens` weighted tokens to `adapter`."""
        self._served[adapter] = self.of(adapter) + tokens

    def of(self, adapter: str | None) -> float:
        return self._served.get(adapter, 0.0)

    @property
    def should_forget(self) -> bool:
        return len(self._served) > self._forget_above

    def forget(self, waiting: Collection[str | None], busy: Collection[str | None]) -> None:
        """Drop the counters that no longer matter, so that their number stays bounded.

        An adapter without a request is lifted to the floor when it comes back, and the floor never
        falls: a counter that is not above it says nothing.

        Args:
            waiting: adapters with requests that wait.
            busy: adapters with any request.
        """
        floor = self._floor(waiting)
        kept = {*busy, self._last_to_leave}
        self._served = {
            adapter: served
            for adapter, served in self._served.items()
            if served > floor or adapter in kept
        }
        self._forget_above = max(_KEPT, 2 * len(self._served))

    def least_served(self, adapters: Iterable[str | None]) -> list[str | None]:
        """Return `adapters`, the least served first; ties keep the given order."""
        return sorted(adapters, key=self.of)

    def _floor(self, waiting: Collection[str | None]) -> float:
        """Return the counter to which an adapter that arrives is lifted."""
        if waiting:
            return min(self.of(other) for other in waiting)
        return self.of(self._last_to_leave) if self._anyone_left else 0.0
