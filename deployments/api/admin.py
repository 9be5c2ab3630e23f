"""The operator's endpoints: change the adapters while the clinic is running.

200 or 201: every running replica has confirmed. 202: the change is made, and `unconfirmed` names
the replicas that do not serve it yet, and why. 409: it conflicts with the catalogue. 422: the
adapter cannot be read or served; every problem is listed. 503: the state or the replicas cannot be
reached, and nothing was changed.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from adapters.catalog import CatalogError
from adapters.changes import ChangeRefused
from adapters.ingest import IngestRefused, VersionRequest
from adapters.sources import SourceError, check_source
from adapters.storage.protocol import StorageError
from adapters.store import DamagedAdapter, RevisionMoved
from deployments.adapter_admin import AdapterAdmin, NobodyToAsk, NotFit, Outcome
from deployments.api.errors import ApiError, Endpoint
from deployments.api.protocol import admin as bodies
from deployments.api.protocol.base import json_response
from deployments.api.request_body import read_request

MAX_BODY_BYTES = 64 * 1024


def admin_endpoints(admin: AdapterAdmin) -> dict[str, Endpoint]:
    """Return the endpoints by their name in operations.py. The front door asks for an admin key."""
    api = _AdminApi(admin)
    endpoints: dict[str, Endpoint] = {
        "adapters": api.listed,
        "add_adapter": api.add,
        "update_adapter": api.update,
        "remove_adapter": api.remove,
        "roll_back_adapter": api.roll_back,
    }
    return {name: _translated(endpoint) for name, endpoint in endpoints.items()}


class _AdminApi:
    def __init__(self, admin: AdapterAdmin) -> None:
        self._admin = admin

    async def listed(self, request: Request) -> Response:
        return json_response(bodies.AdaptersReply.model_validate(await self._admin.listed()))

    async def add(self, request: Request) -> Response:
        asked = await read_request(request, bodies.AddAdapter, MAX_BODY_BYTES)
        problems = check_source(asked.source)
        if problems:
            raise _error(422, "adapter_refused", problems)
        base_model = self._admin.base_model
        wanted = VersionRequest(
            asked.name,
            asked.specialty,
            base_model,
            asked.version,
            asked.source,
            asked.prompt_format,
        )
        outcome = await self._admin.add(
            wanted,
            activation=asked.state,
            weight=asked.canary_weight,
            pinned=asked.pinned,
            expected_revision=asked.expected_revision,
        )
        return _changed(outcome, 201)

    async def update(self, request: Request) -> Response:
        asked = await read_request(request, bodies.UpdateAdapter, MAX_BODY_BYTES)
        fields = asked.model_dump(exclude={"expected_revision"})
        outcome = await self._admin.update(_name(request), fields, asked.expected_revision)
        return _changed(outcome, 200)

    async def remove(self, request: Request) -> Response:
        asked = await _revision(request)
        return _changed(await self._admin.remove(_name(request), asked.expected_revision), 200)

    async def roll_back(self, request: Request) -> Response:
        asked = await _revision(request)
        return _changed(await self._admin.roll_back(_name(request), asked.expected_revision), 200)


def _name(request: Request) -> str:
    return str(request.path_params["name"])


async def _revision(request: Request) -> bodies.Revision:
    return await read_request(request, bodies.Revision, MAX_BODY_BYTES, may_be_empty=True)


def _changed(outcome: Outcome, status: int) -> Response:
    reply = bodies.ChangeReply(
        revision=outcome.revision,
        confirmed=not outcome.unconfirmed,
        replicas=outcome.num_replicas,
        unconfirmed=dict(outcome.unconfirmed),
        adapter=bodies.AdapterReply.model_validate(outcome.adapter) if outcome.adapter else None,
    )
    return json_response(reply, 202 if outcome.unconfirmed else status)


def _error(status: int, code: str, problems: list[str]) -> ApiError:
    return ApiError(status, code, "; ".join(problems), detail={"problems": problems})


_STATUS = {"invalid": 400, "not_found": 404, "conflict": 409}


def _translated(call: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Turn domain errors into statuses. Their messages name files and adapters, never questions."""

    async def translated(request: Request) -> Response:
        try:
            return await call(request)
        except ChangeRefused as error:
            code = "adapter_not_found" if error.kind == "not_found" else f"adapter_{error.kind}"
            raise _error(_STATUS[error.kind], code, error.problems) from error
        except RevisionMoved as error:
            raise _error(409, "revision_moved", [str(error)]) from error
        except (IngestRefused, NotFit) as error:
            raise _error(422, "adapter_refused", error.problems) from error
        except SourceError as error:
            raise _error(422, "source_unreadable", [str(error)]) from error
        except (StorageError, CatalogError, DamagedAdapter) as error:
            raise _error(503, "state_unavailable", [str(error)]) from error
        except NobodyToAsk as error:
            raise _error(503, "no_model_replica", [str(error)]) from error

    return translated
