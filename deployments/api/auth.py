"""Keys and limits in front of the application: who may pass, and how many at the same time.

Pure ASGI: nothing is buffered, no task is made, so a stream passes as it comes and a client that
leaves is noticed as before.
"""

import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.api.api_keys import KeyTable
from deployments.api.paths import Need, local_path, need_of
from deployments.api.protocol import ApiError
from deployments.api.rate_limits import Caller, Excess, Limits, UsageTable
from deployments.api.refusal import error_response
from deployments.reloader import Reloader
from deployments.settings import AccessLimits, AuthSettings

_CHALLENGE = {"www-authenticate": 'Bearer realm="polyclinic"'}
_OVERLOADED_RETRY_S = 1


class AuthMiddleware:
    """Args:
    live: the live settings now: limits of keys that have none of their own, and of this replica.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        app: ASGIApp,
        auth: AuthSettings,
        keys: Reloader[KeyTable],
        live: Callable[[], AccessLimits],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._auth = auth
        self._keys = keys
        self._live = live
        self._ledger = UsageTable(clock)
        self._table: KeyTable | None = None
        self.num_running = 0

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
            await error_response(error, scope, receive, send)
            return
        await self._admitted(caller, scope, receive, send)

    async def _admitted(
        self, caller: Caller | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Count the request in, pass it on, count it out, however it ends."""
        live = self._live()
        if self.num_running >= live.max_concurrent:
            await error_response(_overloaded(live.max_concurrent), scope, receive, send)
            return
        excess = caller.usage.admit(caller.limits) if caller else None
        if caller and excess:
            headers = caller.usage.headers(caller.limits)
            await error_response(_too_many(excess), scope, receive, send, headers)
            return
        self.num_running += 1
        try:
            if caller is None:
                await self._app(scope, receive, send)
            else:
                scope["state"] = {**scope.get("state", {}), "caller": caller}
                await self._app(scope, receive, _with_limits(caller, send))
        finally:
            self.num_running -= 1
            if caller:
                caller.usage.end()

    def _identify(self, headers: Headers, need: Need) -> Caller | None:
        """Who asks; None when nobody has to say.

        Raises:
            ApiError: 401 without a valid key, 403 with one that may not do this.
        """
        if self._auth.mode == "open" and (need == "key" or self._auth.open_admin):
            return None
        presented = _presented_key(headers)
        if presented is None:
            raise _admin_is_closed() if self._auth.mode == "open" else _no_key()
        record = self._current().find(presented)
        if record is None:
            raise ApiError(
                401,
                "invalid_api_key",
                "the API key is not valid here: it is mistyped, revoked, or of another server",
                headers=_CHALLENGE,
            )
        if need == "admin" and record.kind != "admin":
            raise ApiError(
                403,
                "admin_key_required",
                f"key {record.id} is a user key; this path needs an admin key "
                "(python -m deployments.keys create --kind admin)",
            )
        defaults = self._default_limits()
        return Caller(record.id, record.kind, self._ledger.usage(record.id), defaults.of(record))

    def _current(self) -> KeyTable:
        table = self._keys.current
        if table is not self._table:
            self._ledger.forget_all_but(table.ids)
            self._table = table
        return table

    def _default_limits(self) -> Limits:
        live = self._live()
        return Limits(live.requests_per_minute, live.tokens_per_minute, live.max_concurrent_per_key)


def _with_limits(caller: Caller, send: Send) -> Send:
    async def send_with_limits(message: Message) -> None:
        if message["type"] == "http.response.start":
            limits = caller.usage.headers(caller.limits)
            message = {**message, "headers": [*message.get("headers", ()), *limits]}
        await send(message)

    return send_with_limits


def _presented_key(headers: Headers) -> str | None:
    """The key of `Authorization: Bearer KEY` or `x-api-key: KEY`.

    Raises:
        ApiError: 401; the header is there, and is neither.
    """
    given = headers.getlist("authorization")
    if not given:
        return headers.get("x-api-key")
    scheme, _, key = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer" or not key.strip():
        raise ApiError(
            401,
            "invalid_api_key",
            "Authorization: one header of the form 'Bearer KEY' is expected",
            param="authorization",
            headers=_CHALLENGE,
        )
    return key.strip()


def _no_key() -> ApiError:
    return ApiError(
        401,
        "missing_api_key",
        "no API key: send 'Authorization: Bearer KEY' (or 'x-api-key: KEY'); the operator makes "
        "one with python -m deployments.keys create",
        headers=_CHALLENGE,
    )


def _admin_is_closed() -> ApiError:
    return ApiError(
        403,
        "admin_key_required",
        "this path needs an admin key, also while auth.mode is open: make one with "
        "python -m deployments.keys create --kind admin and send 'Authorization: Bearer KEY', "
        "or set args.auth.open_admin: true where everybody who reaches the server may do this",
    )


def _overloaded(limit: int) -> ApiError:
    return ApiError(
        503,
        "overloaded",
        f"{limit} requests are in progress at this router replica, its limit: try again shortly",
        detail={"limit": limit},
        headers={"retry-after": str(_OVERLOADED_RETRY_S)},
    )


def _too_many(excess: Excess) -> ApiError:
    what = {
        "max_concurrent": "requests at the same time",
        "requests_per_minute": "requests a minute",
        "tokens_per_minute": "tokens a minute",
    }[excess.limit]
    return ApiError(
        429,
        "rate_limit_exceeded",
        f"this key's limit is {excess.allowed} {what} ({excess.limit}, per router replica): "
        f"try again in {excess.retry_after_s} s",
        detail={"limit": excess.allowed, "limited_by": excess.limit},
        headers={"retry-after": str(excess.retry_after_s)},
    )
