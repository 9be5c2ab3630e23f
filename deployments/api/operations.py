"""Every path of the API, once: create_api routes by this table, /openapi.json is made from it."""

from dataclasses import dataclass, field

from pydantic import BaseModel

from deployments.api.protocol import admin, ask, openai, openai_replies, references, responses
from deployments.api.protocol.base import RequestModel


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
        events: of an answer that may be streamed; such an operation reads x-session-id.
        more_replies: further statuses with a body like `reply` -> what they mean.
        more_errors: statuses that only this operation refuses with -> what they mean.
    """

    method: str
    path: str
    name: str
    summary: str
    reply: type[BaseModel] | None
    body: type[RequestModel] | None = None
    status: str = "200"
    events: Events | None = None
    query: type[RequestModel] | None = None
    more_replies: dict[str, str] = field(default_factory=dict)
    more_errors: dict[str, str] = field(default_factory=dict)


_ASK = Events(
    "With stream: true, server-sent events: route, first; with grounding, citations; token; "
    "answer, once for each opinion; and one last event, done or error.",
    {
        "route": (ask.AskRouteEvent,),
        "citations": (ask.AskCitationsEvent,),
        "token": (ask.AskTokenEvent,),
        "answer": (ask.AskAnswerEvent, ask.AskFailedEvent),
        "done": (ask.AskDoneEvent,),
        "error": (ask.StreamErrorEvent,),
    },
)
_CHUNKS = Events(
    "With stream: true, server-sent events without a name: chunks, then [DONE]; or an error, and "
    "nothing after it.",
    {None: (openai_replies.Chunk, ask.StreamErrorEvent)},
)
_RESPONSE = Events(
    "With stream: true, server-sent events, named by their type: response.created first, "
    "response.completed or response.incomplete last; or an error, and nothing after it.",
    {
        "response.created": (responses.ResponseEvent,),
        "response.in_progress": (responses.ResponseEvent,),
        "response.output_item.added": (responses.ItemEvent,),
        "response.content_part.added": (responses.PartEvent,),
        "response.output_text.delta": (responses.DeltaEvent,),
        "response.output_text.annotation.added": (responses.AnnotationEvent,),
        "response.output_text.done": (responses.TextDoneEvent,),
        "response.content_part.done": (responses.PartEvent,),
        "response.output_item.done": (responses.ItemEvent,),
        "response.completed": (responses.ResponseEvent,),
        "response.incomplete": (responses.ResponseEvent,),
        "error": (responses.FailedEvent,),
    },
)
_CHAT = (openai_replies.ChatReply, openai.ChatRequest)
_TEXT = (openai_replies.CompletionReply, openai.CompletionRequest)
_MODELS, _MODEL = openai_replies.ModelsReply, openai_replies.ModelReply
_READY = "Whether the model answers, and what is loaded"
_NOT_READY = {"503": "not ready, and why"}

OPERATIONS = (
    Operation("POST", "/ask", "ask", "One question", ask.AskReply, ask.AskRequest, events=_ASK),
    Operation("POST", "/route", "route", "Classify only", ask.RoutesReply, ask.RouteRequest),
    Operation("POST", "/v1/chat/completions", "chat", "OpenAI's chat", *_CHAT, events=_CHUNKS),
    Operation("POST", "/v1/completions", "complete", "OpenAI's text", *_TEXT, events=_CHUNKS),
    Operation(
        "POST",
        "/v1/responses",
        "respond",
        "OpenAI's responses, without what needs a memory",
        responses.ResponsesReply,
        responses.ResponsesRequest,
        events=_RESPONSE,
    ),
    Operation(
        "GET",
        "/v1/references/search",
        "search_references",
        "Passages of the reference shelf",
        references.SearchReply,
        query=references.SearchQuery,
    ),
    Operation("GET", "/v1/models", "models", "What `model` may be", _MODELS),
    Operation("GET", "/v1/models/{model}", "model", "One model", _MODEL),
    Operation("GET", "/openapi.json", "openapi", "This document", None),
    Operation(
        "GET", "/v1/operator", "operator", "Replicas, traffic; admin key", admin.OperatorReply
    ),
    Operation("GET", "/healthz", "healthz", "This process is up", admin.HealthReply),
    Operation("GET", "/readyz", "readyz", _READY, admin.ReadyReply, more_replies=_NOT_READY),
)


def _change(
    method: str, path: str, name: str, summary: str, body: type[RequestModel], status: str = "200"
) -> Operation:
    """Return an operation that changes the adapters."""
    return Operation(
        method,
        path,
        name,
        f"{summary}; admin key",
        admin.ChangeReply,
        body,
        status,
        more_replies={"202": "made, and not confirmed by every replica yet"},
        more_errors={
            "409": "it conflicts with the catalogue",
            "422": "the adapter cannot be read or served: `problems` lists every reason",
        },
    )


_ADAPTERS, _ONE = "/v1/adapters", "/v1/adapters/{name}"
_LISTED = "The catalogue, and what each replica holds; admin key"
_ADD = "A new adapter, or a new version of one"
_UPDATE = "Activate, disable, try out, promote, pin"
_BACK = "End a trial, or return to the version before"

_PASSAGES = "/v1/references/passages"
_REFUSED = {"422": "`problems` lists why each passage is refused; nothing was changed"}

ADMIN_OPERATIONS = (
    Operation(
        "GET",
        "/v1/references/sources",
        "reference_sources",
        "What is on the reference shelf; admin key",
        references.SourcesReply,
    ),
    Operation(
        "POST",
        _PASSAGES,
        "add_passages",
        "Put passages on the reference shelf; admin key",
        references.ShelfReply,
        references.AddPassages,
        "201",
        more_errors=_REFUSED,
    ),
    Operation(
        "DELETE",
        _PASSAGES,
        "remove_passages",
        "Take passages off it; admin key",
        references.ShelfReply,
        references.RemovePassages,
        more_errors=_REFUSED,
    ),
    Operation("GET", _ADAPTERS, "adapters", _LISTED, admin.AdaptersReply),
    _change("POST", _ADAPTERS, "add_adapter", _ADD, admin.AddAdapter, "201"),
    _change("PATCH", _ONE, "update_adapter", _UPDATE, admin.UpdateAdapter),
    _change("DELETE", _ONE, "remove_adapter", "Remove an adapter", admin.Revision),
    _change("POST", f"{_ONE}/rollback", "roll_back_adapter", _BACK, admin.Revision),
)
