"""The shapes of our answers to /ask and /route. Plain dictionaries, no I/O.

reply_models.py describes them for /openapi.json; the tests hold the two together.
"""

from collections.abc import Sequence
from typing import Any

from deployments.api.opinions import Opinion
from deployments.api.protocol import ApiError
from deployments.api.streaming import Completed
from deployments.engine.request import TokenEvent
from deployments.messages import ServedModels
from router.policy import Route


def route_reply(route: Route) -> dict[str, Any]:
    """The part of an answer that says who speaks and why."""
    return {
        "specialty": route.specialty,
        "confidence": _rounded(route.confidence),
        "adapter": route.adapter,
        "reason": str(route.reason),
        "in_scope": route.in_scope,
        "alternatives": [
            {"specialty": other.specialty, "probability": round(other.probability, 4)}
            for other in route.alternatives
        ],
        "evidence": list(route.evidence),
        "language": route.language,
        "notice": route.notice,
    }


def usage_reply(event: TokenEvent) -> dict[str, int]:
    return {
        "prompt_tokens": event.num_prompt_tokens,
        "completion_tokens": event.num_tokens,
        "total_tokens": event.num_prompt_tokens + event.num_tokens,
    }


def timings_reply(event: TokenEvent, route_s: float) -> dict[str, float | None]:
    """Milliseconds. `queue`, `first_token` and `total` count from the engine's acceptance."""
    timings = event.timings
    return {
        "route": _ms(route_s),
        "queue": _ms(timings.queue_s),
        "first_token": _ms(timings.first_token_s),
        "total": _ms(timings.total_s),
    }


def opinion_head(opinion: int, speaker: Opinion, clinic: ServedModels) -> dict[str, Any]:
    """Who gives opinion number `opinion`."""
    return {
        "opinion": opinion,
        "specialty": speaker.specialty,
        "probability": _rounded(speaker.probability),
        "adapter": speaker.adapter,
        "adapter_version": version_of(speaker.adapter, clinic),
    }


def ending_reply(event: TokenEvent, route_s: float) -> dict[str, Any]:
    """How an answer ended."""
    return {
        "finish_reason": event.finish_reason,
        "usage": usage_reply(event),
        "timings_ms": timings_reply(event, route_s),
    }


def opening_reply(
    request_id: str, session_id: str | None, route: Route, heads: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The first event of a stream of /ask. Specialty and adapter are those of the first opinion."""
    first = {key: heads[0][key] for key in ("specialty", "adapter", "adapter_version")}
    return {
        "id": request_id,
        "session_id": session_id,
        **route_reply(route),
        **first,
        "opinions": list(heads),
    }


def ask_reply(
    request_id: str,
    session_id: str | None,
    route: Route,
    opinions: Sequence[tuple[dict[str, Any], Completed | ApiError]],
    route_s: float,
    *,
    is_consulted: bool,
) -> dict[str, Any]:
    """A whole reply of /ask. At the top stands the first opinion that did not fail.

    Args:
        opinions: each head with its answer, or with the failure that it ended in; one at least
            has an answer.
    """
    head, answered = next((h, a) for h, a in opinions if isinstance(a, Completed))
    reply = {
        "id": request_id,
        "session_id": session_id,
        "answer": answered.text,
        **route_reply(route),
        **{key: head[key] for key in ("specialty", "adapter", "adapter_version")},
        **ending_reply(answered.event, route_s),
    }
    if is_consulted:
        reply["opinions"] = [_opinion(h, a, route_s) for h, a in opinions]
    return reply


def _opinion(head: dict[str, Any], result: Completed | ApiError, route_s: float) -> dict[str, Any]:
    if isinstance(result, ApiError):
        nothing = {"answer": None, "finish_reason": "error", "usage": None, "timings_ms": None}
        return {**head, **nothing, **result.body()}
    ending = ending_reply(result.event, route_s)
    return {**head, "answer": result.text, **ending, "error": None}


def version_of(adapter: str | None, clinic: ServedModels) -> str | None:
    card = clinic.adapter(adapter) if adapter else None
    return card.version if card else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
