"""/openapi.json: OpenAPI 3.1, generated from the table of operations and their models."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deployments.api.operations import ADMIN_OPERATIONS, OPERATIONS, Events, Operation
from deployments.api.protocol.admin import Revision
from deployments.api.protocol.base import ID_PATTERN, ErrorReply

_REF = "#/components/schemas/"
_ERRORS = {
    "400": "a bad value or an unsupported field: `param` names it",
    "401": "no API key, or one that is not valid",
    "403": "not with this API key",
    "404": "unknown model, specialty or path",
    "405": "another method is expected",
    "414": "the address is too long",
    "429": "this API key's limit",
    "431": "the headers are too large",
    "500": "an error of the server, which its log names",
    "503": "no capacity: queue full, replica lost, or not ready",
}
_ERRORS_OF_BODIES = {
    "408": "the deadline passed before anything was generated, or the body came too slowly",
    "413": "the body is too large",
    "415": "application/json is expected, uncompressed or with gzip",
}
_REQUEST_ID = {
    "description": "the client's x-request-id if it is 1 to 128 of A-Za-z0-9._-, else a new one",
    "required": True,
    "schema": {"type": "string"},
}
_RETRY_AFTER = {"description": "seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}


@cache
def openapi_document(*, with_admin: bool = True) -> dict[str, Any]:
    """Return the whole document, as plain JSON that is not to be changed: it is made once.

    `with_admin`: adapters can be changed here.
    """
    paths: dict[str, Any] = {}
    for operation in (*OPERATIONS, *(ADMIN_OPERATIONS if with_admin else ())):
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Polyclinic",
            "version": "0.1.0",
            "summary": "Questions to LoRA specialists. Research software, not medical advice.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas((*OPERATIONS, *ADMIN_OPERATIONS)),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"bearer": []}],  # whether a key is needed is the operator's choice
    }


def _described(operation: Operation) -> dict[str, Any]:
    errors = _ERRORS | (_ERRORS_OF_BODIES if operation.body else {}) | operation.more_errors
    replies = {operation.status: operation.summary} | operation.more_replies
    responses = {code: _error(code, text) for code, text in errors.items()}
    responses |= {code: _reply(text, operation.reply) for code, text in replies.items()}
    described = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [
            *map(_id_header, ["x-request-id", *(["x-session-id"] if operation.events else [])]),
            *map(_path_parameter, re.findall(r"{(\w+)}", operation.path)),
            *(_query_parameters(operation.query) if operation.query else ()),
        ],
        "responses": responses,
    }
    if operation.events:
        content = responses[operation.status]["content"]
        content["text/event-stream"] = {"schema": _event_schema(operation.events)}
    if operation.body:
        content = {"application/json": {"schema": _ref(operation.body)}}
        described["requestBody"] = {"required": operation.body is not Revision, "content": content}
    return described


def _reply(description: str, model: type[BaseModel] | None) -> dict[str, Any]:
    document = {"type": "object", "required": ["openapi", "paths"]}
    schema = _ref(model) if model else document
    return {
        "description": description,
        "headers": {"x-request-id": _REQUEST_ID},
        "content": {"application/json": {"schema": schema}},
    }


def _error(code: str, description: str) -> dict[str, Any]:
    described = _reply(description, ErrorReply)
    if code in ("429", "503"):
        described["headers"]["retry-after"] = _RETRY_AFTER
    return described


def _event_schema(events: Events) -> dict[str, Any]:
    """Return the schema of one event, as OpenAPI 3.2 has it."""
    kinds: list[dict[str, Any]] = []
    for name, models in events.kinds.items():
        data: dict[str, Any] = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"anyOf": [_ref(model) for model in models]},
        }
        properties = {"event": {"const": name}, "data": data} if name else {"data": data}
        kinds.append({"required": list(properties), "properties": properties})
    if None in events.kinds:
        kinds.append({"required": ["data"], "properties": {"data": {"const": "[DONE]"}}})
    return {"type": "object", "description": events.description, "anyOf": kinds}


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    models: set[type[BaseModel]] = {ErrorReply}
    for operation in operations:
        kinds = operation.events.kinds.values() if operation.events else ()
        named = (operation.body, operation.reply, *(model for kind in kinds for model in kind))
        models |= {model for model in named if model}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, generated = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=_REF + "{model}"
    )
    schemas: dict[str, Any] = generated["$defs"]
    return schemas


def _id_header(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if name != "x-request-id":  # where that has another shape, the request gets a new one
        schema["pattern"] = ID_PATTERN
    return {"name": name, "in": "header", "schema": schema}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _not_null(field)}
        for name, field in schema["properties"].items()
    ]


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a field's schema without null, which a query cannot hold: it leaves the name out."""
    given = [option for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if not given:
        return schema
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**rest, **given[0]}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"{_REF}{model.__name__}"}
