"""The errors of a body that does not fit its model: every bad field is named."""

from typing import Any

from pydantic_core import ErrorDetails

from deployments.api.errors import ApiError
from deployments.api.protocol.base import RequestModel
from deployments.api.protocol.neutral import UNSUPPORTED
from deployments.strict_model import nearest


def as_api_error(errors: list[ErrorDetails], model: type[RequestModel]) -> ApiError:
    """Return the 400 of a body that pydantic refused.

    A field that we do not support is named alone: without it, the rest may be right. With a role
    that we do not have it is not.
    """
    first = next((item for item in errors if item["type"] == UNSUPPORTED), None)
    if first is not None and not any(item["loc"][-1:] == ("role",) for item in errors):
        path = _path(first["loc"])
        message = f"{path}: {first['msg']} (got {shown(first['input'])}): leave it out"
        detail = {"allowed": model.supported()} if len(first["loc"]) == 1 else {}
        return ApiError(400, UNSUPPORTED, message, param=path, detail=detail)
    is_unknown = errors[0]["type"] == "extra_forbidden"
    return ApiError(
        400,
        "unknown_field" if is_unknown else "invalid_value",
        "; ".join(dict.fromkeys(_problem(item, model) for item in errors)),
        param=_path(errors[0]["loc"]) or None,
    )


def _problem(item: ErrorDetails, model: type[RequestModel]) -> str:
    path = _path(item["loc"]) or "body"
    if item["type"] == "extra_forbidden":
        is_ours = len(item["loc"]) == 1
        hint = f"; {nearest(str(item['loc'][0]), model.supported())}" if is_ours else ""
        return f"{shown(path)}: unknown field{hint}"
    if item["type"] == "missing":
        return f"{path}: required, and missing"
    return f"{path}: {item['msg']} (got {shown(item['input'])})"


def _path(loc: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", "list[TextPart]") -> "messages.0.content": no type names."""
    return ".".join(
        str(p)
        for p in loc
        if isinstance(p, int) or (p.islower() and p.isidentifier() and p != "str")
    )


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
