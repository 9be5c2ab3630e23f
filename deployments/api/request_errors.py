"""The errors of a body that does not fit its model: every bad field is named."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import ErrorDetails

from deployments.api.errors import ApiError
from deployments.api.protocol.base import RequestModel
from deployments.api.protocol.neutral import UNSUPPORTED
from deployments.strict_model import nearest


def as_api_error(errors: list[ErrorDetails], model: type[RequestModel], body: Any) -> ApiError:
    """Return the 400 of a `body` that pydantic refused.

    A field that we do not support is named alone: without it, the rest may be right. With a role
    that we do not have it is not.
    """
    first = next((item for item in errors if item["type"] == UNSUPPORTED), None)
    if first is not None and not any(item["loc"][-1:] == ("role",) for item in errors):
        path = _path(first, body)
        message = f"{path}: {first['msg']} (got {shown(first['input'])}): leave it out"
        detail = {"allowed": model.supported()} if len(first["loc"]) == 1 else {}
        return ApiError(400, UNSUPPORTED, message, param=path, detail=detail)
    is_unknown = errors[0]["type"] == "extra_forbidden"
    return ApiError(
        400,
        "unknown_field" if is_unknown else "invalid_value",
        "; ".join(dict.fromkeys(_problem(item, model, body) for item in errors)),
        param=_path(errors[0], body) or None,
    )


def _problem(item: ErrorDetails, model: type[RequestModel], body: Any) -> str:
    path = _path(item, body) or "body"
    if item["type"] == "extra_forbidden":
        is_ours = len(item["loc"]) == 1
        hint = f"; {nearest(str(item['loc'][0]), model.supported())}" if is_ours else ""
        return f"{shown(path)}: unknown field{hint}"
    if item["type"] == "missing":
        return f"{path}: required, and missing"
    return f"{path}: {item['msg']} (got {shown(item['input'])})"


def _path(item: ErrorDetails, body: Any) -> str:
    """("messages", 0, "content", "Parts") -> "messages.0.content": what is in the body, or is
    missing there, and no names of types."""
    path: list[int | str] = []
    for part in item["loc"]:
        is_there = part in body if isinstance(body, dict) else isinstance(part, int)
        if is_there:
            path.append(part)
            body = body[part]
    if item["type"] == "missing" and not is_there:
        path.append(item["loc"][-1])
    return dotted(path)


def dotted(path: Sequence[int | str]) -> str:
    """Return the path of a part of a body, each key as a client may see it again."""
    keys = (str(key).encode(errors="backslashreplace").decode() for key in path)
    return ".".join(key if len(key) <= 60 else f"{key[:57]}..." for key in keys)


def shown(value: Any) -> str:
    """Return a value as a client may see it again: at most 60 characters, ASCII."""
    if isinstance(value, dict | list):
        return f"a JSON {json_type(value)}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({len(str(value))} characters)"


def json_type(value: Any) -> str:
    """Return what JSON calls the type of a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
