"""Fairness between adapters by virtual token counters. Pure Python.

Sheng et al. 2024, "Fairness in Serving Large Language Models": each client (here: each adapter,
the base counting as one) has a counter of the service that it got. Whoever waits with the least
goes next; a client that comes back after a pause is lifted to the least among those that wait, so
that it cannot save up credit. A flood on one adapter then costs another adapter's request no more
than what is already running.
"""

from collections.abc import Collection, Iterable

# A generated token costs a whole pass over the weights, a prompt token shares one: the paper's
# weights.
PROMPT_TOKEN = 1.0
GENERATED_TOKEN = 2.0


class TokenCounters:
    """Service received by each adapter, in weighted tokens."""

    def __init__(self) -> None:
        self._served: dict[str | None, float] = {}
        self._last_to_leave: str | None = None
        self._anyone_left = False

    def arrive(self, adapter: str | None, waiting: Collection[str | None]) -> None:
        """A request of `adapter` arrives; `waiting` are the adapters with requests that wait.

        To be called before the request is queued: nothing happens when `adapter` waits already.
        """
        if adapter in waiting:
            return
        floor = 0.0
        if waiting:
            floor = min(self.of(other) for other in waiting)
        elif self._anyone_left:
            floor = self.of(self._last_to_leave)
        self._served[adapter] = max(self.of(adapter), floor)

    def leave(self, adapter: str | None) -> None:
        """The last waiting request of `adapter` was admitted or given up."""
        self._last_to_leave, self._anyone_left = adapter, True

    def charge(self, adapter: str | None, tokens: float) -> None:
        """`adapter` received service worth `tokens` weighted tokens."""
        self._served[adapter] = self.of(adapter) + tokens

    def of(self, adapter: str | None) -> float:
        return self._served.get(adapter, 0.0)

    def least_served(self, adapters: Iterable[str | None]) -> list[str | None]:
        """`adapters`, the least served first; ties keep the given order."""
        return sorted(adapters, key=self.of)
