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
from deployments.api.protocol.references import CitationReply, Grounding, SupportReply

MaxTokens = Annotated[StrictInt, Field(ge=1)]


class AskRequest(RequestModel):
    """POST /ask"""

    question: StrictStr = Field(
        description="English or French; its length is limited by the server"
    )
    specialty: StrictStr | None = Field(
        default=None, description="asks this specialty's specialist, without the router"
    )
    max_tokens: MaxTokens | None = Field(default=None, description="longest answer")
    stream: StrictBool | None = Field(default=None, description="server-sent events")
    min_confidence: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="the router's threshold for this request; not with specialty",
    )
    timeout_s: float | None = Field(
        default=None, gt=0, description="seconds from acceptance until the answer ends as it is"
    )
    session_id: StrictStr | None = Field(
        default=None, pattern=ID_PATTERN, description="the client's name for a conversation; echoed"
    )
    consult: StrictInt | None = Field(
        default=None,
        ge=1,
        le=3,
        description="this many of the most probable specialists answer; not with specialty",
    )
    grounding: Grounding = None


class RouteRequest(RequestModel):
    """POST /route: classification only."""

    questions: list[StrictStr] = Field(min_length=1)


class RoutesReply(ReplyModel):
    routes: list[RouteReply]


class OpinionHead(ReplyModel):
    """Who gives opinion number `opinion`."""

    opinion: Count
    specialty: str | None
    probability: Probability | None
    adapter: str | None
    adapter_version: str | None


class _Grounded(ReplyModel):
    """What an answer stands on; left out where grounding is off."""

    citations: list[CitationReply] = Field(default=[], description="the passages, by number")
    support: list[SupportReply] = Field(
        default=[], description="with grounding: cite, each sentence that states something"
    )


class OpinionReply(_Grounded, OpinionHead):
    """One opinion. With `error`, there is no answer, no usage and no timings."""

    answer: str | None
    finish_reason: FinishReason | Literal["error"]
    usage: Usage | None
    timings_ms: TimingsReply | None
    error: ErrorDetail | None
    notices: list[str] = Field(
        default=[], description="with grounding: of this opinion, besides those of all"
    )


class _Ids(ReplyModel):
    id: str = Field(description="the request's id, as in x-request-id")
    session_id: str | None


class _IdsAndAnswer(_Ids):
    answer: str


class AskReply(_Grounded, Ending, AnsweredRoute, _IdsAndAnswer):
    """The whole answer; at the top level is the first opinion that did not fail."""

    opinions: list[OpinionReply] = Field(default=[], description="only with consult")


class AskRouteEvent(AnsweredRoute, _Ids):
    """`event: route`, the first. Specialty and adapter are those of the first opinion."""

    opinions: list[OpinionHead]


class AskCitationsEvent(ReplyModel):
    """`event: citations`, with grounding: one for each opinion, after `event: route`."""

    opinion: Count
    citations: list[CitationReply]


class AskTokenEvent(ReplyModel):
    """`event: token`"""

    opinion: Count
    text: str


class _OpinionNumber(ReplyModel):
    opinion: Count


class AskAnswerEvent(Ending, _OpinionNumber):
    """`event: answer`: this opinion is complete."""

    support: list[SupportReply] = Field(default=[], description="with grounding, as in AskReply")
    answer: str = Field(
        default="", description="with notice ungrounded: takes the place of the text sent"
    )
    notice: str | None = Field(default=None, description="the first of notices")
    notices: list[str] = Field(default=[], description="all of them, if some show late")


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
