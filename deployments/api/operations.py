"""Every path of the API, once: create_api routes by this table, /openapi.json is made from it."""

from dataclasses import dataclass, field

from pydantic import BaseModel

from deployments.api.protocol.admin import (
    AdaptersReply,
    AddAdapter,
    ChangeReply,
    HealthReply,
    OperatorReply,
    ReadyReply,
    Revision,
    UpdateAdapter,
)
from deployments.api.protocol.ask import (
    AskAnswerEvent,
    AskDoneEvent,
    AskFailedEvent,
    AskReply,
    AskRequest,
    AskRouteEvent,
    AskTokenEvent,
    RouteRequest,
    RoutesReply,
    StreamErrorEvent,
)
from deployments.api.protocol.base import RequestModel
from deployments.api.protocol.openai import ChatRequest, CompletionRequest
from deployments.api.protocol.openai_replies import (
    ChatReply,
    Chunk,
    CompletionReply,
    ModelReply,
    ModelsReply,
)


@dataclass(frozen=True, slots=True)
class Events:
    """What `stream: true` gives. `kinds`: name of an event -> what its data, JSON, may be."""

    description: str
    kinds: dict[str | None, tuple[type[BaseModel], ...]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `name` is its operationId, by which create_api finds its endpoint.

    Args:
        reply: with status `status`; None: an OpenAPI document.
        headers: headers with an id that are read, besides x-request-id.
        more_replies: further statuses with a body like `reply` -> what they mean.
        more_errors: statuses that only this operation refuses with -> what they mean.
    """

    method: str
    path: str
    name: str
    summary: str
    reply: type[BaseModel] | None
    body: type[RequestModel] | None = None
    body_is_required: bool = True
    status: str = "200"
    events: Events | None = None
    headers: tuple[str, ...] = ()
    more_replies: dict[str, str] = field(default_factory=dict)
    more_errors: dict[str, str] = field(default_factory=dict)


_ASK_EVENTS = Events(
    "With stream: true, server-sent events: route, first; token; answer, once for each opinion; "
    "and one last event, done or error.",
    {
        "route": (AskRouteEvent,),
        "token": (AskTokenEvent,),
        "answer": (AskAnswerEvent, AskFailedEvent),
        "done": (AskDoneEvent,),
        "error": (StreamErrorEvent,),
    },
)
_OPENAI_EVENTS = Events(
    "With stream: true, server-sent events without a name: chunks, then [DONE]; or an error, and "
    "nothing after it.",
    {None: (Chunk, StreamErrorEvent)},
)
_SESSION = ("x-session-id",)

OPERATIONS = (
    Operation(
        "POST",
        "/ask",
        "ask",
        "One question",
        AskReply,
        AskRequest,
        events=_ASK_EVENTS,
        headers=_SESSION,
    ),
    Operation("POST", "/route", "route", "Classify only", RoutesReply, RouteRequest),
    Operation(
        "POST",
        "/v1/chat/completions",
        "chat",
        "OpenAI's chat",
        ChatReply,
        ChatRequest,
        events=_OPENAI_EVENTS,
        headers=_SESSION,
    ),
    Operation(
        "POST",
        "/v1/completions",
        "complete",
        "OpenAI's text completion: the prompt is asked as one question",
        CompletionReply,
        CompletionRequest,
        events=_OPENAI_EVENTS,
        headers=_SESSION,
    ),
    Operation("GET", "/v1/models", "models", "What `model` may be", ModelsReply),
    Operation("GET", "/v1/models/{model}", "model", "One model", ModelReply),
    Operation("GET", "/openapi.json", "openapi", "This document", None),
    Operation(
        "GET",
        "/v1/operator",
        "operator",
        "Replicas and traffic; needs an admin key",
        OperatorReply,
    ),
    Operation("GET", "/healthz", "healthz", "This process is up", HealthReply),
    Operation(
        "GET",
        "/readyz",
        "readyz",
        "Whether the model answers, and what is loaded",
        ReadyReply,
        more_replies={"503": "not ready, and why"},
    ),
)

_UNCONFIRMED = {"202": "made, and not confirmed by every replica yet"}
_REFUSED = {
    "409": "it conflicts with the catalogue",
    "422": "the adapter cannot be read or served: `problems` lists every reason",
}


def _change(
    method: str,
    path: str,
    name: str,
    summary: str,
    body: type[RequestModel],
    *,
    status: str = "200",
) -> Operation:
    return Operation(
        method,
        path,
        name,
        f"{summary}; needs an admin key",
        ChangeReply,
        body,
        body_is_required=body is not Revision,
        status=status,
        more_replies=_UNCONFIRMED,
        more_errors=_REFUSED,
    )


ADMIN_OPERATIONS = (
    Operation(
        "GET",
        "/v1/adapters",
        "adapters",
        "The catalogue, and what each replica holds; needs an admin key",
        AdaptersReply,
    ),
    _change(
        "POST",
        "/v1/adapters",
        "add_adapter",
        "A new adapter, or a new version of one",
        AddAdapter,
        status="201",
    ),
    _change(
        "PATCH",
        "/v1/adapters/{name}",
        "update_adapter",
        "Activate, disable, try out, promote, pin",
        UpdateAdapter,
    ),
    _change("DELETE", "/v1/adapters/{name}", "remove_adapter", "Remove an adapter", Revision),
    _change(
        "POST",
        "/v1/adapters/{name}/rollback",
        "roll_back_adapter",
        "End a trial, or return to the version before",
        Revision,
    ),
)
