"""What all bodies share: strict requests, and the parts that several replies have in common.

A reply is built as its model and sent with `reply.json_text()`. A field with a default is optional:
it is sent only where it was set. Fields come in the order of the base classes from last to first
(pydantic's rule), which is why a reply names the class of its first fields last.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from deployments.api.protocol.neutral import AcceptOnly
from deployments.engine.request import TokenEvent
from router.policy import Reason, Route

# A request's or a session's id.
ID_PATTERN = r"^[A-Za-z0-9._-]{1,128}$"
_ID = re.compile(ID_PATTERN)

Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


class RequestModel(BaseModel):
    """No unknown keys but with null, no conversion between types, no NaN or infinity."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"additionalProperties": {"type": "null"}},
    )

    @model_validator(mode="before")
    @classmethod
    def _without_unknown_nulls(cls, given: Any) -> Any:
        """Drop unknown keys whose value is null: they ask for nothing."""
        if not isinstance(given, dict) or None not in given.values():
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {key: value for key, value in given.items() if value is not None or key in known}

    @classmethod
    def supported(cls) -> list[str]:
        """Return the names of the fields that have an effect or are hints, sorted."""
        return sorted(set(cls.model_fields) - cls.neutral())

    @classmethod
    def neutral(cls) -> frozenset[str]:
        """Return the names of the fields that are accepted only with a neutral value."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if any(isinstance(item, AcceptOnly) for item in field.metadata)
        )


class ReplyModel(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def json_text(self) -> str:
        """Return the reply as JSON, without the optional fields that were not set."""
        return self.model_dump_json(exclude_unset=True)


def json_response(
    reply: ReplyModel, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(reply.json_text(), status, headers, media_type="application/json")


class ErrorDetail(ReplyModel, extra="allow"):
    """OpenAI's error shape; `limit`, `allowed` or `limited_by` follow where they help."""

    message: str = Field(description="what was wrong, what is allowed, what to do next")
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="the field, or null")
    code: str = Field(description="stable, for programs")


class ErrorReply(ReplyModel):
    error: ErrorDetail


class PromptTokens(ReplyModel):
    """Prompt tokens that were read for an earlier request, and not again."""

    cached_tokens: Count


class Usage(ReplyModel):
    """Tokens."""

    prompt_tokens: Count
    prompt_tokens_details: PromptTokens
    completion_tokens: Count
    total_tokens: Count

    @classmethod
    def of(cls, event: TokenEvent) -> Self:
        return cls.sum(event.num_prompt_tokens, event.num_cached_tokens, event.num_tokens)

    @classmethod
    def sum(cls, num_prompt_tokens: int, num_cached_tokens: int, num_tokens: int) -> Self:
        return cls(
            prompt_tokens=num_prompt_tokens,
            prompt_tokens_details=PromptTokens(cached_tokens=num_cached_tokens),
            completion_tokens=num_tokens,
            total_tokens=num_prompt_tokens + num_tokens,
        )


class TimingsReply(ReplyModel):
    """Milliseconds; null: not reached. All but `route` count from the engine's acceptance."""

    route: float
    queue: float | None
    first_token: float | None
    total: float | None


class AlternativeReply(ReplyModel):
    specialty: str
    probability: Probability


class RouteReply(ReplyModel):
    """Who answers, how sure the router is, and why."""

    specialty: str | None = Field(description="null: the base model, for no specialty")
    confidence: Probability | None = Field(description="null: nothing was classified")
    adapter: str | None = Field(description="null: the base model")
    reason: Reason = Field(description="why this route; a code")
    in_scope: bool | None = Field(description="whether it is a question for a clinic")
    alternatives: list[AlternativeReply]
    evidence: list[str] = Field(description="phrases that decided")
    language: str = Field(description="of the question; und: undetermined")
    notice: str | None = Field(description="the first of notices, or null")
    notices: list[str] = Field(
        description="what to know of the answer, the most important first: urgent (it begins with "
        "advice to call for help), language_not_supported, max_tokens_lowered"
    )
    red_flags: list[str] = Field(description="emergencies that the question may be")


def notice_fields(notices: Sequence[str]) -> dict[str, Any]:
    """Return the fields `notice` and `notices`. `notices`: the most important first."""
    return {"notice": next(iter(notices), None), "notices": list(notices)}


def route_fields(route: Route) -> dict[str, Any]:
    """Return the fields of RouteReply, for a reply that has others too."""
    return {
        "specialty": route.specialty,
        "confidence": rounded(route.confidence),
        "adapter": route.adapter,
        "reason": route.reason,
        "in_scope": route.in_scope,
        "alternatives": [
            AlternativeReply(specialty=other.specialty, probability=round(other.probability, 4))
            for other in route.alternatives
        ],
        "evidence": list(route.evidence),
        "language": route.language,
        **notice_fields(route.notices),
        "red_flags": list(route.red_flags),
    }


class AnsweredRoute(RouteReply):
    adapter_version: str | None


FinishReason = Literal["stop", "length", "loop", "timeout", "cancelled"]


class Ending(ReplyModel):
    """How an answer ended."""

    finish_reason: FinishReason = Field(
        description="the true one; loop: it ends before it would say the same words a third time"
    )
    usage: Usage
    timings_ms: TimingsReply


def ending_fields(event: TokenEvent, route_s: float) -> dict[str, Any]:
    """Return the fields of Ending, for a reply that has others too."""
    timings = event.timings
    return {
        "finish_reason": str(event.finish_reason),
        "usage": Usage.of(event),
        "timings_ms": TimingsReply(
            route=round(route_s * 1000, 1),
            queue=_ms(timings.queue_s),
            first_token=_ms(timings.first_token_s),
            total=_ms(timings.total_s),
        ),
    }


def rounded(probability: float | None) -> float | None:
    return None if probability is None else round(probability, 4)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
