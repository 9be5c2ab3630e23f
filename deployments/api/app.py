"""The HTTP face of the clinic: `create_api(backend)` -> Starlette. No ray, no torch.

    POST /ask                    one question, one answer or several opinions (ask.py)
    POST /route                  classification only
    POST /v1/chat/completions    OpenAI's shape; `model`: auto, an adapter, or base
    POST /v1/completions         the prompt asked as one question (openai_endpoints.py)
    GET  /v1/models  /v1/models/{model}  /v1/operator  /openapi.json  /healthz  /readyz
    GET  /  /static/...          the page (pages.py)

Every response carries x-request-id. Domain errors become HTTP statuses here and in http_io.py, and
nowhere else.
"""

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as HttpRoute

from deployments.adapter_admin import AdapterAdmin
from deployments.api.admin import admin_routes
from deployments.api.ask import AskEndpoint
from deployments.api.checks import check_count, check_known, check_text
from deployments.api.middleware import (
    Endpoint,
    RequestIds,
    catch_unexpected,
    error_response,
    http_error,
    read_request,
)
from deployments.api.openai import OpenAIEndpoints
from deployments.api.openai_replies import model_reply, models_reply
from deployments.api.openapi import openapi_document
from deployments.api.pages import page_routes
from deployments.api.protocol import ApiError, RouteRequest
from deployments.api.replies import route_reply
from deployments.messages import Backend, Outcome


def create_api(backend: Backend, admin: AdapterAdmin | None = None) -> Starlette:
    """The application. `backend` is the router deployment, or a small one in tests.

    `admin` changes the adapters; None: its paths are not there.
    """
    api = _Api(backend, openapi_document(with_admin=admin is not None))
    openai = OpenAIEndpoints(backend)
    table: list[tuple[str, str, Endpoint]] = [
        ("POST", "/ask", AskEndpoint(backend)),
        ("POST", "/route", api.route),
        ("POST", "/v1/chat/completions", openai.chat),
        ("POST", "/v1/completions", openai.completions),
        ("GET", "/v1/models", api.models),
        ("GET", "/v1/models/{model}", api.model),
        ("GET", "/openapi.json", api.openapi),
        ("GET", "/v1/operator", api.operator),
        ("GET", "/healthz", api.healthz),
        ("GET", "/readyz", api.readyz),
    ]
    routes = [
        HttpRoute(path, catch_unexpected(call), methods=[method]) for method, path, call in table
    ]
    routes += page_routes()
    routes += admin_routes(admin) if admin else []
    handlers: dict[Any, Callable[..., Response]] = {
        ApiError: error_response,
        HTTPException: http_error(sorted({route.path for route in routes})),
    }
    return Starlette(
        routes=routes, exception_handlers=handlers, middleware=[Middleware(RequestIds)]
    )


class _Api:
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
        return JSONResponse({"routes": [route_reply(route) for route in routes]})

    async def models(self, request: Request) -> Response:
        return JSONResponse(models_reply(self._backend.clinic))

    async def model(self, request: Request) -> Response:
        name, clinic = request.path_params["model"], self._backend.clinic
        check_known("model", name, clinic.model_names)
        return JSONResponse(model_reply(clinic, name))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._openapi)

    async def operator(self, request: Request) -> Response:
        return JSONResponse(await self._backend.operator_report())

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        is_ready, report = await self._backend.readiness()
        status = "ready" if is_ready else "not_ready"
        return JSONResponse({"status": status, **report}, status_code=200 if is_ready else 503)
