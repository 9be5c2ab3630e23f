"""/openapi.json: OpenAPI 3.1, generated from the request models and the reply models."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployments.api import reply_models as reply
from deployments.api.admin_openapi import ADMIN_MODELS, admin_paths
from deployments.api.openapi_parts import REF, answer, get, id_header, path_parameter, post, ref
from deployments.api.protocol import (
    COUNTS,
    OPENAI_FIELDS_WE_LACK,
    AskRequest,
    ChatRequest,
    CompletionRequest,
    OpenAIRequest,
    RouteRequest,
)

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


def openapi_document(*, with_admin: bool = True) -> dict[str, Any]:
    """The whole document, as plain JSON. `with_admin`: adapters can be changed here."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Polyclinic",
            "version": "0.1.0",
            "summary": "Questions to LoRA specialists. Research software, not medical advice.",
        },
        "paths": _paths() | (admin_paths() if with_admin else {}),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],  # whether a key is needed is the operator's choice
    }


def _paths() -> dict[str, Any]:
    ask = post("ask", "One question", AskRequest, reply.AskReply)
    _add_stream(ask, _ASK_STREAM, _ASK_EVENTS)
    chat = post("chat", "OpenAI's chat", ChatRequest, reply.ChatReply)
    _add_stream(chat, _OPENAI_STREAM, _OPENAI_EVENTS)
    text = post("complete", "OpenAI's text", CompletionRequest, reply.CompletionReply)
    _add_stream(text, _OPENAI_STREAM, _OPENAI_EVENTS)
    for operation in (ask, chat, text):
        operation["parameters"].append(id_header("x-session-id"))
    model = get("model", "One model", reply.ModelReply)
    model["parameters"].append(path_parameter("model"))
    ready = get("readyz", "Whether the model answers, and what is loaded", reply.ReadyReply)
    ready["responses"]["503"] = answer("not ready, and why", reply.ReadyReply)
    document = {"type": "object", "required": ["openapi", "paths"]}
    openapi = get("openapi", "This document", None)
    openapi["responses"]["200"]["content"] = {"application/json": {"schema": document}}
    operator = get("operator", "Replicas and traffic; needs an admin key", reply.OperatorReply)
    return {
        "/ask": {"post": ask},
        "/route": {"post": post("route", "Classify only", RouteRequest, reply.RoutesReply)},
        "/v1/chat/completions": {"post": chat},
        "/v1/completions": {"post": text},
        "/v1/models": {"get": get("models", "What `model` may be", reply.ModelsReply)},
        "/v1/models/{model}": {"get": model},
        "/v1/operator": {"get": operator},
        "/openapi.json": {"get": openapi},
        "/healthz": {"get": get("healthz", "This process is up", reply.HealthReply)},
        "/readyz": {"get": ready},
    }


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
            "contentSchema": {"anyOf": [ref(model) for model in models]},
        }
        properties = {"event": {"const": name}, "data": data} if name else {"data": data}
        kinds.append({"required": list(properties), "properties": properties})
    if None in events:
        kinds.append({"required": ["data"], "properties": {"data": {"const": "[DONE]"}}})
    content = operation["responses"]["200"]["content"]
    schema = {"type": "object", "description": description, "anyOf": kinds}
    content["text/event-stream"] = {"schema": schema}


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
        *ADMIN_MODELS,
    )
    _, generated = models_json_schema(
        [(model, "validation") for model in models], ref_template=REF + "{model}"
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
