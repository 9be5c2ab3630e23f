"""The HTTP application, `create_api(backend)`, and the front door before it. No ray, no torch.

operations.py lists the paths. A request passes, in this order: what an operator sees of it
(observed.py), HTTP/1.0, response headers, limits on its size and time, its host where no key is
asked for (hosts.py), CORS where origins are set, keys and rates (auth.py), request ids, endpoint.
"""

import time
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as HttpRoute
from starlette.types import ASGIApp

from deployments.adapter_admin import AdapterAdmin
from deployments.api.access.admission import Admission
from deployments.api.access.auth import AuthMiddleware, KeySource
from deployments.api.access.hosts import HostCheck, guarded_hosts
from deployments.api.access.rate_limits import UsageTable
from deployments.api.admin import admin_endpoints
from deployments.api.ask import AskEndpoint
from deployments.api.errors import ApiError, Endpoint, error_response, on_http_error
from deployments.api.http_1_0 import WholeForHttp10
from deployments.api.middleware import (
    RequestIds,
    RequestLimits,
    ResponseHeaders,
    catch_unexpected,
)
from deployments.api.observed import Observed
from deployments.api.openai.endpoints import OpenAIEndpoints
from deployments.api.openai.responses import ResponsesEndpoint
from deployments.api.openapi import openapi_document
from deployments.api.operations import ADMIN_OPERATIONS, OPERATIONS
from deployments.api.pages import page_routes
from deployments.api.protocol.admin import HealthReply, OperatorReply, ReadyReply
from deployments.api.protocol.ask import RouteRequest, RoutesReply
from deployments.api.protocol.base import RouteReply, json_response, route_fields
from deployments.api.protocol.openai_replies import ModelsReply
from deployments.api.references import ReferencesEndpoint
from deployments.api.request_body import check_count, check_known, check_text, read_request
from deployments.live_settings import AccessLimits
from deployments.messages import Backend, Outcome
from deployments.settings import Settings

_RATES = (f"{a}-{b}" for a in ("limit", "remaining", "reset") for b in ("requests", "tokens"))
_EXPOSED = ("retry-after", "x-request-id", *(f"x-ratelimit-{rate}" for rate in _RATES))


def behind_front_door(
    app: ASGIApp,
    settings: Settings,
    keys: KeySource,
    live: Callable[[], AccessLimits],
    *,
    clock: Callable[[], float] = time.monotonic,
    admission: Admission | None = None,
    usages: UsageTable | None = None,
    proxy_adds_id: bool = False,
    count_refusal: Callable[[str], None] = lambda code: None,
    is_logging: Callable[[], bool] = lambda: False,
) -> ASGIApp:
    """Wrap `app`, which finds the caller in `scope["state"]["caller"]` when keys are on.

    Args:
        admission, usages: of AuthMiddleware.
        proxy_adds_id: of ResponseHeaders.
        count_refusal, is_logging: of Observed.
    """
    guarded: ASGIApp = AuthMiddleware(app, settings.auth, keys, live, clock, admission, usages)
    if settings.cors_origins:  # outside the keys: a preflight request carries none
        guarded = CORSMiddleware(
            guarded,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=("*",),  # clients add their own, and no header carries rights by itself
            expose_headers=_EXPOSED,
        )
    hosts = guarded_hosts(settings)
    if hosts is not None:
        guarded = HostCheck(guarded, hosts)
    limited = RequestLimits(guarded, live)
    whole = WholeForHttp10(ResponseHeaders(limited, proxy_adds_id=proxy_adds_id))
    return Observed(whole, count_refusal, is_logging)


def create_api(backend: Backend, admin: AdapterAdmin | None = None) -> Starlette:
    """Build the application.

    Args:
        backend: the router deployment, or a small one in tests.
        admin: changes the adapters; None: its paths are not there.
    """
    openai, references = OpenAIEndpoints(backend), ReferencesEndpoint(backend)
    api = _Api(backend, openapi_document(with_admin=admin is not None))
    endpoints: dict[str, Endpoint] = {
        "ask": AskEndpoint(backend),
        "route": api.route,
        "chat": openai.chat,
        "complete": openai.completions,
        "respond": ResponsesEndpoint(backend, openai),
        "search_references": references.search,
        "models": api.models,
        "model": api.model,
        "openapi": api.openapi,
        "operator": api.operator,
        "healthz": api.healthz,
        "readyz": api.readyz,
    }
    if admin:
        endpoints |= admin_endpoints(admin) | references.admin()
    routes = [
        HttpRoute(o.path, catch_unexpected(endpoints[o.name]), methods=[o.method])
        for o in (*OPERATIONS, *(ADMIN_OPERATIONS if admin else ()))
    ]
    routes += page_routes()
    handlers: dict[Any, Callable[..., Response]] = {
        ApiError: lambda request, error: error_response(error),
        HTTPException: on_http_error(sorted({route.path for route in routes})),
    }
    return Starlette(
        routes=routes, exception_handlers=handlers, middleware=[Middleware(RequestIds)]
    )


class _Api:
    """The endpoints that answer no question."""

    def __init__(self, backend: Backend, openapi: dict[str, Any]) -> None:
        self._backend = backend
        self._openapi = openapi

    async def route(self, request: Request) -> Response:
        limits = self._backend.limits
        asked = await read_request(request, RouteRequest, limits.max_body_bytes)
        check_count("questions", len(asked.questions), limits.max_questions)
        for position, question in enumerate(asked.questions):
            check_text(f"questions.{position}", question, max_chars=limits.max_question_chars)
        routes = await self._backend.classify([[question] for question in asked.questions])
        for route in routes:
            outcome = Outcome(route.specialty, route.adapter, "routed", route.confidence)
            self._backend.record(outcome)
        return json_response(
            RoutesReply(routes=[RouteReply(**route_fields(route)) for route in routes])
        )

    async def models(self, request: Request) -> Response:
        return json_response(ModelsReply.of(self._backend.clinic))

    async def model(self, request: Request) -> Response:
        name, clinic = request.path_params["model"], self._backend.clinic
        check_known("model", name, clinic.model_names)
        return json_response(next(m for m in ModelsReply.of(clinic).data if m.id == name))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._openapi)

    async def operator(self, request: Request) -> Response:
        return json_response(OperatorReply(**await self._backend.operator_report()))

    async def healthz(self, request: Request) -> Response:
        return json_response(HealthReply(status="ok"))

    async def readyz(self, request: Request) -> Response:
        is_ready, report = await self._backend.readiness()
        reply = ReadyReply(status="ready" if is_ready else "not_ready", **report)
        return json_response(reply, 200 if is_ready else 503)
