"""POST /ask and POST /route: requests, replies, and the events of a stream."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from deployments.api.protocol.base import (
    ID_PATTERN,
    AnsweredRoute,
    Count,
    Ending,
    ErrorDetail,
    FinishReason,
    Probability,
    ReplyModel,
    RequestModel,
    RouteReply,
    TimingsReply,
    Usage,
)

MaxTokens = Annotated[StrictInt, Field(ge=1)]


class AskRequest(RequestModel):
    """POST /ask"""

    question: Annotated[
        StrictStr, Field(description="English or French; its length is limited by the server")
    ]
    specialty: Annotated[
        StrictStr | None, Field(description="asks this specialty's specialist, without the router")
    ] = None
    max_tokens: Annotated[MaxTokens | None, Field(description="longest answer")] = None
    stream: Annotated[StrictBool, Field(description="server-sent events")] = False
    min_confidence: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        Field(description="the router's threshold for this request; not with specialty"),
    ] = None
    timeout_s: Annotated[
        Annotated[float, Field(gt=0)] | None,
        Field(description="seconds from acceptance until the answer ends as it is"),
    ] = None
    session_id: Annotated[
        Annotated[StrictStr, Field(pattern=ID_PATTERN)] | None,
        Field(description="the client's name for a conversation; echoed"),
    ] = None
    consult: Annotated[
        Annotated[StrictInt, Field(ge=1, le=3)] | None,
        Field(description="this many of the most probable specialists answer; not with specialty"),
    ] = None


class RouteRequest(RequestModel):
    """POST /route: classification only."""

    questions: Annotated[list[StrictStr], Field(min_length=1)]


class RoutesReply(ReplyModel):
    routes: list[RouteReply]


class OpinionHead(ReplyModel):
    """Who gives opinion number `opinion`."""

    opinion: Count
    specialty: str | None
    probability: Probability | None
    adapter: str | None
    adapter_version: str | None


class OpinionReply(OpinionHead):
    """One opinion. With `error`, there is no answer, no usage and no timings."""

    answer: str | None
    finish_reason: FinishReason | Literal["error"]
    usage: Usage | None
    timings_ms: TimingsReply | None
    error: ErrorDetail | None


class _Ids(ReplyModel):
    id: Annotated[str, Field(description="the request's id, as in x-request-id")]
    session_id: str | None


class _IdsAndAnswer(_Ids):
    answer: str


class AskReply(Ending, AnsweredRoute, _IdsAndAnswer):
    """The whole answer; at the top level is the first opinion that did not fail."""

    opinions: Annotated[list[OpinionReply], Field(description="only with consult")] = []


class AskRouteEvent(AnsweredRoute, _Ids):
    """`event: route`, the first. Specialty and adapter are those of the first opinion."""

    opinions: list[OpinionHead]


class AskTokenEvent(ReplyModel):
    """`event: token`"""

    opinion: Count
    text: str


class _OpinionNumber(ReplyModel):
    opinion: Count


class AskAnswerEvent(Ending, _OpinionNumber):
    """`event: answer`: this opinion is complete."""


class AskFailedEvent(ReplyModel):
    """`event: answer`: this opinion failed; the others continue."""

    opinion: Count
    error: ErrorDetail


class AskDoneEvent(ReplyModel):
    """`event: done`, the last."""

    id: str


class StreamErrorEvent(ReplyModel):
    """`event: error`, the last: nothing was answered. `error.request_id` names the request."""

    error: ErrorDetail
