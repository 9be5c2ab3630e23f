"""The part of /openapi.json about /v1/adapters."""

from typing import Any

from pydantic import BaseModel

from deployments.api.admin_models import (
    AdaptersReply,
    AddAdapter,
    ChangeReply,
    Revision,
    UpdateAdapter,
)
from deployments.api.openapi_parts import answer, error, get, path_parameter, post

ADMIN_MODELS: tuple[type[BaseModel], ...] = (
    AddAdapter,
    UpdateAdapter,
    Revision,
    AdaptersReply,
    ChangeReply,
)


def admin_paths() -> dict[str, Any]:
    add = _change("add_adapter", "A new adapter, or a new version of one", AddAdapter)
    add["responses"]["201"] = add["responses"].pop("200")
    update = _change("update_adapter", "Activate, disable, try out, promote, pin", UpdateAdapter)
    remove = _change("remove_adapter", "Take an adapter out", Revision)
    roll_back = _change(
        "roll_back_adapter", "End a trial, or return to the version before", Revision
    )
    for operation in (update, remove, roll_back):
        operation["parameters"].append(path_parameter("name"))
    for operation in (remove, roll_back):
        operation["requestBody"]["required"] = False
    listed = get("adapters", "The catalogue, and what each replica holds", AdaptersReply)
    return {
        "/v1/adapters": {"get": listed, "post": add},
        "/v1/adapters/{name}": {"patch": update, "delete": remove},
        "/v1/adapters/{name}/rollback": {"post": roll_back},
    }


def _change(name: str, summary: str, body: type[BaseModel]) -> dict[str, Any]:
    operation = post(name, f"{summary}; needs an admin key", body, ChangeReply)
    operation["responses"] |= {
        "202": answer("made, and not confirmed by every replica yet", ChangeReply),
        "409": error("409", "it collides with the catalogue"),
        "422": error("422", "not fit, or not to be had: `problems` lists every one"),
    }
    return operation
