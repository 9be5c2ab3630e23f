"""The operator's side of the API: adapters come and go while the clinic is open.

    GET    /v1/adapters                    the catalogue, and what each replica holds
    POST   /v1/adapters                    a new adapter, or a new version of one
    PATCH  /v1/adapters/{name}             activate, disable, pick a version, try out, promote, pin
    DELETE /v1/adapters/{name}
    POST   /v1/adapters/{name}/rollback    end a trial, or return to the version before

200 or 201: every running replica has confirmed. 202: the change is made, and `unconfirmed` names
the replicas that have not taken it over yet, and why. 409: it collides with the catalogue; 422: the
adapter is not fit, or not to be had: every problem listed; 503: the state or the replicas cannot
be reached, and nothing was changed.
"""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from adapters.catalog import CatalogError
from adapters.changes import ChangeRefused
from adapters.ingest import IngestRefused, VersionRequest
from adapters.source_folder import SourceError
from adapters.sources import check_source
from adapters.storage.protocol import StorageError
from adapters.store import DamagedAdapter, RevisionMoved
from deployments.adapter_admin import AdapterAdmin, NobodyToAsk, NotFit, Outcome
from deployments.api.admin_models import AddAdapter, Revision, UpdateAdapter
from deployments.api.middleware import Endpoint, catch_unexpected, read_request
from deployments.api.protocol import ApiError

MAX_BODY_BYTES = 64 * 1024


def admin_routes(admin: AdapterAdmin) -> list[Route]:
    """For create_api. An admin key is asked for by whoever stands in front of these paths."""
    api = _AdminApi(admin)
    table: list[tuple[str, str, Endpoint]] = [
        ("GET", "/v1/adapters", api.listed),
        ("POST", "/v1/adapters", api.add),
        ("PATCH", "/v1/adapters/{name}", api.update),
        ("DELETE", "/v1/adapters/{name}", api.remove),
        ("POST", "/v1/adapters/{name}/rollback", api.roll_back),
    ]
    return [
        Route(path, catch_unexpected(_translated(call)), methods=[m]) for m, path, call in table
    ]


class _AdminApi:
    def __init__(self, admin: AdapterAdmin) -> None:
        self._admin = admin

    async def listed(self, request: Request) -> Response:
        return JSONResponse(await self._admin.listed())

    async def add(self, request: Request) -> Response:
        asked = await read_request(request, AddAdapter, MAX_BODY_BYTES)
        problems = check_source(asked.source)
        if problems:
            raise _error(422, "adapter_refused", problems)
        base_model = self._admin.base_model
        wanted = VersionRequest(
            asked.name, asked.specialty, base_model, asked.version, asked.source
        )
        outcome = await self._admin.add(
            wanted,
            activation=asked.state,
            weight=asked.canary_weight,
            pinned=asked.pinned,
            expected_revision=asked.expected_revision,
        )
        return _reply(outcome, 201)

    async def update(self, request: Request) -> Response:
        asked = await read_request(request, UpdateAdapter, MAX_BODY_BYTES)
        fields = asked.model_dump(exclude={"expected_revision"})
        outcome = await self._admin.update(_name(request), fields, asked.expected_revision)
        return _reply(outcome, 200)

    async def remove(self, request: Request) -> Response:
        asked = await _revision(request)
        return _reply(await self._admin.remove(_name(request), asked.expected_revision), 200)

    async def roll_back(self, request: Request) -> Response:
        asked = await _revision(request)
        return _reply(await self._admin.roll_back(_name(request), asked.expected_revision), 200)


def _name(request: Request) -> str:
    return str(request.path_params["name"])


async def _revision(request: Request) -> Revision:
    return await read_request(request, Revision, MAX_BODY_BYTES, may_be_empty=True)


def _reply(outcome: Outcome, status: int) -> Response:
    body = {
        "revision": outcome.revision,
        "confirmed": not outcome.unconfirmed,
        "replicas": outcome.num_replicas,
        "unconfirmed": dict(outcome.unconfirmed),
        "adapter": outcome.adapter,
    }
    return JSONResponse(body, status_code=202 if outcome.unconfirmed else status)


def _error(status: int, code: str, problems: list[str]) -> ApiError:
    return ApiError(status, code, "; ".join(problems), detail={"problems": problems})


_STATUS = {"invalid": 400, "not_found": 404, "conflict": 409}


def _translated(call: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Domain errors become statuses; the messages name files and adapters, never questions."""

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
