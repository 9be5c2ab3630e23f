"""API keys and limits before the application: which requests pass, and how many at the same time.

Pure ASGI: nothing is buffered and no task is made, so a stream passes as it comes, and a client
that leaves is noticed.
"""

import time
from collections.abc import Callable
from typing import Literal, Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.access.admission import Admission
from deployments.api.access.api_keys import KeyTable
from deployments.api.access.rate_limits import Caller, Limits, UsageTable, too_many
from deployments.api.errors import ApiError
from deployments.api.middleware import PAGE_PATHS, STATIC, is_under, local_path, refuse
from deployments.live_settings import AccessLimits
from deployments.settings import AuthSettings

_CHALLENGE = {"www-authenticate": 'Bearer realm="polyclinic"'}
_CREATE = "(python -m deployments.keys create --kind admin)"
_NO_KEY = (
    "no API key: send 'Authorization: Bearer KEY' (or 'x-api-key: KEY'); the operator makes one "
    "with python -m deployments.keys create"
)
_ADMIN_IS_CLOSED = (
    "this path needs an admin key, also while auth.mode is open: make one with "
    "python -m deployments.keys create --kind admin and send 'Authorization: Bearer KEY', "
    "or set args.auth.open_admin: true where everybody who reaches the server may do this"
)

Need = Literal["nothing", "key", "admin"]

# The page and what it loads, probes, and the description of the API. They hold no answers.
OPEN_PATHS = frozenset((*PAGE_PATHS, "/healthz", "/readyz", "/openapi.json", "/favicon.ico"))
ADMIN_PATHS = (
    *("/v1/adapters", "/v1/operator", "/v1/keys"),
    *("/v1/references/passages", "/v1/references/sources"),
)


def need_of(path: str) -> Need:
    """Return what a request to `path` (see `local_path`) must show.

    A path that is in neither list needs a key, so a new route is closed until somebody opens it.
    """
    if is_under(path, ADMIN_PATHS):
        return "admin"
    if path in OPEN_PATHS or is_under(path, (STATIC,)):
        return "nothing"
    return "key"


class KeySource(Protocol):
    """The keys that are valid now."""

    @property
    def current(self) -> KeyTable: ...


class AuthMiddleware:
    """Answer 401, 403, 429 or 503, or pass the request on with its caller.

    Args:
        live: returns the live settings: this replica's limits, and those of keys without own ones.
        clock: seconds, monotonic.
        admission: counts the requests; None: its own.
        usages: what keys use; None: counted here alone, by `clock`.
    """

    def __init__(
        self,
        app: ASGIApp,
        auth: AuthSettings,
        keys: KeySource,
        live: Callable[[], AccessLimits],
        clock: Callable[[], float] = time.monotonic,
        admission: Admission | None = None,
        usages: UsageTable | None = None,
    ) -> None:
        self._app = app
        self._auth = auth
        self._keys = keys
        self._live = live
        self._usages = usages or UsageTable(clock)
        self._table: KeyTable | None = None
        self._admission = admission or Admission()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        need = need_of(local_path(scope))
        if need == "nothing":
            await self._app(scope, receive, send)
            return
        try:
            caller = self._identify(Headers(scope=scope), need)
        except ApiError as error:
            await refuse(error, scope, receive, send)
            return
        await self._admitted(caller, scope, receive, send)

    async def _admitted(
        self, caller: Caller | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Count the request, pass it on, and stop counting it however it ends."""
        refusal = self._admission.refusal(self._live().max_concurrent)
        if refusal:
            await refuse(refusal, scope, receive, send)
            return
        excess = await self._usages.admit(caller.usage, caller.limits) if caller else None
        if caller and excess:
            headers = caller.usage.headers(caller.limits)
            await refuse(too_many(excess), scope, receive, send, headers)
            return
        self._admission.num_running += 1
        try:
            if caller is None:
                await self._app(scope, receive, send)
            else:
                scope["state"] = {**scope.get("state", {}), "caller": caller}
                await self._app(scope, receive, _with_limits(caller, send))
        finally:
            self._admission.num_running -= 1
            if caller:
                caller.usage.end()

    def _identify(self, headers: Headers, need: Need) -> Caller | None:
        """Return who asks; None where no key is needed.

        Raises:
            ApiError: 401 without a valid key, 403 with a key that may not do this.
        """
        if self._auth.mode == "open" and (need == "key" or self._auth.open_admin):
            return None
        presented = _presented_key(headers)
        if presented is None:
            if self._auth.mode == "open":
                raise ApiError(403, "admin_key_required", _ADMIN_IS_CLOSED)
            raise _unauthorized("missing_api_key", _NO_KEY)
        record = self._current().find(presented)
        if record is None:
            message = "the API key is not valid here: it is mistyped, revoked, or of another server"
            raise _unauthorized("invalid_api_key", message)
        if need == "admin" and record.kind != "admin":
            message = f"key {record.id} is a user key; this path needs an admin key " + _CREATE
            raise ApiError(403, "admin_key_required", message)
        live = self._live()
        defaults = Limits(
            live.requests_per_minute, live.tokens_per_minute, live.max_concurrent_per_key
        )
        return Caller(record.id, record.kind, self._usages.usage(record.id), defaults.of(record))

    def _current(self) -> KeyTable:
        table = self._keys.current
        if table is not self._table:
            self._usages.forget_all_but(table.ids)
            self._table = table
        return table


def _with_limits(caller: Caller, send: Send) -> Send:
    async def send_with_limits(message: Message) -> None:
        if message["type"] == "http.response.start":
            limits = caller.usage.headers(caller.limits)
            message = {**message, "headers": [*message.get("headers", ()), *limits]}
        await send(message)

    return send_with_limits


def _presented_key(headers: Headers) -> str | None:
    """Return the key of `Authorization: Bearer KEY` or `x-api-key: KEY`; None without either.

    Raises:
        ApiError: 401; the header is there, and has another form.
    """
    given = headers.getlist("authorization")
    if not given:
        return headers.get("x-api-key")
    scheme, _, key = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer" or not key.strip():
        message = "Authorization: one header of the form 'Bearer KEY' is expected"
        raise _unauthorized("invalid_api_key", message, param="authorization")
    return key.strip()


def _unauthorized(code: str, message: str, param: str | None = None) -> ApiError:
    return ApiError(401, code, message, param=param, headers=_CHALLENGE)
