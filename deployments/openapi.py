"""/openapi.json: OpenAPI 3.1, generated from the request models and the reply models."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployments import reply_models as reply
from deployments.schema import (
    COUNTS,
    OPENAI_FIELDS_WE_LACK,
    AskRequest,
    ChatRequest,
    CompletionRequest,
    OpenAIRequest,
    RouteRequest,
)

_REF = "#/components/schemas/"
_REQUEST_ID = {
    "description": "the client's x-request-id, or a new one",
    "required": True,
    "schema": {"type": "string"},
}
_RETRY_AFTER = {
    "description": "seconds",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
_ERRORS = {
    "400": "a bad value or an unsupported field: `param` names it",
    "401": "no API key, or one that is not valid",
    "403": "not with this API key",
    "404": "unknown model, specialty or path",
    "405": "another method is expected",
    "408": "the deadline passed before anything was generated, or the body came too slowly",
    "413": "the body is too large",
    "414": "the address is too long",
    "415": "application/json is expected",
    "429": "this API key's limit",
    "431": "the headers are too large",
    "500": "an error of the server, which its log names",
    "503": "no capacity: queue full, replica lost, or not ready",
}
_OF_BODIES = ("408", "413", "415")  # only where a body is read
# name of an event -> what its data, JSON, may be
_ASK_EVENTS: dict[str | None, tuple[type[BaseModel], ...]] = {
    "route": (reply.AskRouteEvent,),
    "token": (reply.AskTokenEvent,),
    "answer": (reply.AskAnswerEvent, reply.AskFailedEvent),
    "done": (reply.AskDoneEvent,),
    "error": (reply.StreamErrorEvent,),
}
_OPENAI_EVENTS: dict[str | None, tuple[type[BaseModel], ...]] = {
    None: (reply.Chunk, reply.StreamErrorEvent)
}
_ASK_STREAM = (
    "With stream: true, server-sent events: route, first; token; answer, once for each opinion; "
    "and one last event, done or error."
)
_OPENAI_STREAM = (
    "With stream: true, server-sent events without a name: chunks, then [DONE]; or an error, and "
    "nothing after it."
)


def openapi_document() -> dict[str, Any]:
    """The whole document, as plain JSON."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Polyclinic",
            "version": "0.1.0",
            "summary": "Questions to LoRA specialists. Research software, not medical advice.",
        },
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],  # whether a key is needed is the operator's choice
    }


def _paths() -> dict[str, Any]:
    ask = _post("ask", "One question", AskRequest, reply.AskReply)
    _add_stream(ask, _ASK_STREAM, _ASK_EVENTS)
    chat = _post("chat", "OpenAI's chat", ChatRequest, reply.ChatReply)
    _add_stream(chat, _OPENAI_STREAM, _OPENAI_EVENTS)
    text = _post("complete", "OpenAI's text", CompletionRequest, reply.CompletionReply)
    _add_stream(text, _OPENAI_STREAM, _OPENAI_EVENTS)
    model = _get("model", "One model", reply.ModelReply)
    model["parameters"].append(
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    )
    ready = _get("readyz", "Whether the model answers, and what is loaded", reply.ReadyReply)
    ready["responses"]["503"] = _answer("not ready, and why", reply.ReadyReply)
    document = {"type": "object", "required": ["openapi", "paths"]}
    openapi = _get("openapi", "This document", None)
    openapi["responses"]["200"]["content"] = {"application/json": {"schema": document}}
    operator = _get("operator", "Replicas and traffic; needs an admin key", reply.OperatorReply)
    return {
        "/ask": {"post": ask},
        "/route": {"post": _post("route", "Classify only", RouteRequest, reply.RoutesReply)},
        "/v1/chat/completions": {"post": chat},
        "/v1/completions": {"post": text},
        "/v1/models": {"get": _get("models", "What `model` may be", reply.ModelsReply)},
        "/v1/models/{model}": {"get": model},
        "/v1/operator": {"get": operator},
        "/openapi.json": {"get": openapi},
        "/healthz": {"get": _get("healthz", "This process is up", reply.HealthReply)},
        "/readyz": {"get": ready},
    }


def _get(name: str, summary: str, model: type[BaseModel] | None) -> dict[str, Any]:
    errors = {code: text for code, text in _ERRORS.items() if code not in _OF_BODIES}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [
            {
                "name": "x-request-id",
                "in": "header",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
            }
        ],
        "responses": {
            "200": _answer(summary, model),
            **{code: _error(code, text) for code, text in errors.items()},
        },
    }


def _post(name: str, summary: str, body: type[BaseModel], model: type[BaseModel]) -> dict[str, Any]:
    operation = _get(name, summary, model)
    content = {"application/json": {"schema": _ref(body)}}
    operation["requestBody"] = {"required": True, "content": content}
    responses = operation["responses"]
    responses |= {code: _error(code, _ERRORS[code]) for code in _OF_BODIES}
    return operation


def _add_stream(
    operation: dict[str, Any],
    description: str,
    events: dict[str | None, tuple[type[BaseModel], ...]],
) -> None:
    """What `stream: true` gives. The schema is that of one event, as OpenAPI 3.2 has it."""
    kinds: list[dict[str, Any]] = []
    for name, models in events.items():
        data: dict[str, Any] = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"anyOf": [_ref(model) for model in models]},
        }
        properties = {"event": {"const": name}, "data": data} if name else {"data": data}
        kinds.append({"required": list(properties), "properties": properties})
    if None in events:
        kinds.append({"required": ["data"], "properties": {"data": {"const": "[DONE]"}}})
    content = operation["responses"]["200"]["content"]
    schema = {"type": "object", "description": description, "anyOf": kinds}
    content["text/event-stream"] = {"schema": schema}


def _answer(description: str, model: type[BaseModel] | None) -> dict[str, Any]:
    answer = {"description": description, "headers": {"x-request-id": _REQUEST_ID}}
    return {**answer, "content": {"application/json": {"schema": _ref(model)}}} if model else answer


def _error(code: str, description: str) -> dict[str, Any]:
    error = _answer(description, reply.ErrorReply)
    if code in ("429", "503"):
        error["headers"] = {**error["headers"], "retry-after": _RETRY_AFTER}
    return error


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"{_REF}{model.__name__}"}


def _schemas() -> dict[str, Any]:
    models: Sequence[type[BaseModel]] = (
        AskRequest,
        RouteRequest,
        ChatRequest,
        CompletionRequest,
        reply.AskReply,
        reply.RoutesReply,
        reply.ChatReply,
        reply.CompletionReply,
        reply.ModelsReply,
        reply.HealthReply,
        reply.ReadyReply,
        reply.OperatorReply,
        reply.ErrorReply,
        *(model for models in _ASK_EVENTS.values() for model in models),
        reply.Chunk,
    )
    _, generated = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REF + "{model}"
    )
    schemas: dict[str, Any] = generated["$defs"]
    for model in models:
        if issubclass(model, OpenAIRequest):
            schemas[model.__name__]["properties"] |= _neutral_fields()
    return schemas


def _neutral_fields() -> dict[str, Any]:
    """Fields of OpenAI's that we do not support: each with the values that ask for nothing."""
    return {
        name: {
            "description": "not supported: only a value that asks for nothing is accepted",
            "enum": [None, 1 if name in COUNTS else 0, False, [], {}, {"type": "text"}],
        }
        for name in sorted(OPENAI_FIELDS_WE_LACK)
    }
