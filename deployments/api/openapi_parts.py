"""Pieces of an OpenAPI document: operations, answers, errors, references. Plain dictionaries."""

from typing import Any

from pydantic import BaseModel

from deployments.api import reply_models as reply

REF = "#/components/schemas/"
_REQUEST_ID = {
    "description": "the client's x-request-id, or a new one",
    "required": True,
    "schema": {"type": "string"},
}
_RETRY_AFTER = {
    "description": "seconds",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
ERRORS = {
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
OF_BODIES = ("408", "413", "415")  # only where a body is read


def get(name: str, summary: str, model: type[BaseModel] | None) -> dict[str, Any]:
    errors = {code: text for code, text in ERRORS.items() if code not in OF_BODIES}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [id_header("x-request-id")],
        "responses": {
            "200": answer(summary, model),
            **{code: error(code, text) for code, text in errors.items()},
        },
    }


def post(name: str, summary: str, body: type[BaseModel], model: type[BaseModel]) -> dict[str, Any]:
    operation = get(name, summary, model)
    content = {"application/json": {"schema": ref(body)}}
    operation["requestBody"] = {"required": True, "content": content}
    responses = operation["responses"]
    responses |= {code: error(code, ERRORS[code]) for code in OF_BODIES}
    return operation


def answer(description: str, model: type[BaseModel] | None) -> dict[str, Any]:
    described = {"description": description, "headers": {"x-request-id": _REQUEST_ID}}
    if model is None:
        return described
    return {**described, "content": {"application/json": {"schema": ref(model)}}}


def error(code: str, description: str) -> dict[str, Any]:
    described = answer(description, reply.ErrorReply)
    if code in ("429", "503"):
        described["headers"] = {**described["headers"], "retry-after": _RETRY_AFTER}
    return described


def id_header(name: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"}
    return {"name": name, "in": "header", "schema": schema}


def path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"{REF}{model.__name__}"}
