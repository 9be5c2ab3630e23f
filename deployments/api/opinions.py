"""Whose answers a question gets: the routed specialist's, or several for a second opinion."""

from dataclasses import dataclass

from deployments.messages import Backend
from router.policy import Reason, Route


@dataclass(frozen=True, slots=True)
class Opinion:
    """Who gives one opinion. `probability`: the router's, of `specialty`; None: not classified."""

    specialty: str | None
    probability: float | None
    adapter: str | None


BASE = Opinion(None, None, None)


def routed(route: Route) -> Opinion:
    """The one who answers when nobody else is consulted."""
    probability = route.confidence if route.specialty else None
    return Opinion(route.specialty, probability, route.adapter)


def consulted(backend: Backend, route: Route, question: str, num_opinions: int) -> list[Opinion]:
    """The most probable specialists that have an adapter, at most `num_opinions`, sure or not.

    A question that is not one for a clinic gets the base model alone, as does a clinic without an
    adapter.
    """
    if route.reason is Reason.OUT_OF_SCOPE or not route.specialists:
        return [BASE]
    return [
        Opinion(s.specialty, s.probability, backend.explicit(s.specialty, question).adapter)
        for s in route.specialists[:num_opinions]
    ]
