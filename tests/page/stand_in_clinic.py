"""The stand-in clinic on a real socket: create_api, a check of keys, and a server in a thread."""

import asyncio
import socket
import threading
import time

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.api.app import create_api
from tests.page.stand_in_backend import StandInBackend


class KeyCheck:
    """The part of the key middleware that the page meets; None: no key is asked for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.key: str | None = None
        self.admin_key: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = None
        if scope["type"] == "http":
            wanted = self.admin_key if "/v1/operator" in scope["path"] else self.key
            if not scope["path"].endswith(("/ask", "/v1/operator")):
                wanted = None
        given = dict(scope.get("headers", [])).get(b"authorization", b"").decode()
        if wanted is None or given == f"Bearer {wanted}":
            await self._app(scope, receive, send)
            return
        code = "invalid_api_key" if given else "missing_api_key"
        error = {"message": "send Authorization: Bearer <key>", "type": "invalid_request_error"}
        body = {"error": {**error, "param": None, "code": code}}
        await JSONResponse(body, 401, {"www-authenticate": "Bearer"})(scope, receive, send)


class _Server(uvicorn.Server):
    """Knows its loop, so that another thread can cut its connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)


class StandInClinic:
    """The server, in a thread of this process, on a free loopback port."""

    def __init__(self) -> None:
        self.url = ""
        self.backend = StandInBackend()
        app = create_api(self.backend)
        self.keys = KeyCheck(app)
        config = uvicorn.Config(
            self.keys, host="127.0.0.1", port=0, ws="none", lifespan="off", log_config=None
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        """Sets `url`, the address of the page."""
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "the stand-in clinic did not start within 20 s"
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"

    def cut_streams(self) -> None:
        """Every connection breaks, as when the machine is lost."""
        for connection in list(self._server.server_state.connections):
            self._server.loop.call_soon_threadsafe(connection.transport.abort)

    def wait_until_idle(self, timeout_s: float = 5) -> None:
        deadline = time.monotonic() + timeout_s
        while self.backend.num_running:
            assert time.monotonic() < deadline, f"{self.backend.num_running} answers still run"
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.force_exit = True
        self._server.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive(), "the stand-in clinic did not stop within 20 s"
