"""New settings for a running Serve, against a small dashboard."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import launch
from deployments.startup import live_settings
from deployments.startup.live_settings import ApplyError, apply_config
from deployments.startup.status import Addresses

CONTENT = {"applications": [{"name": "clinic"}]}


class Dashboard:
    """Takes a PUT with `status` and `reply`, then reports `states` one after the other."""

    def __init__(self) -> None:
        self.status, self.reply = 200, ""
        self.states = ["DEPLOYING", "RUNNING"]
        self.received: list[tuple[str, dict[str, Any], str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                token = self.headers.get("Authorization")
                outer.received.append((self.path, json.loads(body), token))
                self._answer(outer.status, outer.reply.encode())

            def do_GET(self) -> None:
                body: dict[str, Any] = {}
                if self.path != "/readyz":
                    state = outer.states.pop(0) if len(outer.states) > 1 else outer.states[0]
                    body = {"applications": {"clinic": {"status": state, "message": "no GPU"}}}
                self._answer(200, json.dumps(body).encode())

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_port
        url = f"http://127.0.0.1:{self.port}"
        self.addresses = Addresses(url, url)


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setattr(live_settings, "POLL_S", 0.01)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    started = Dashboard()
    thread = threading.Thread(target=started.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield started
    started.http.shutdown()
    started.http.server_close()
    thread.join()


def test_it_is_sent_with_rays_token_and_waited_for(dashboard: Dashboard) -> None:
    apply_config(CONTENT, dashboard.addresses, timeout_s=10)
    assert dashboard.received == [("/api/serve/applications/", CONTENT, "Bearer secret")]
    assert dashboard.states == ["RUNNING"]


@pytest.mark.parametrize(
    ("status", "reply", "told"),
    [
        (401, "", "refuses our token .status 401.: run this as the user who started"),
        (
            400,
            'Traceback\n  File "x.py", line 1\n    f()\nValueError: bad key',
            "400: ValueError: bad",
        ),
    ],
)
def test_a_refusal_is_told(dashboard: Dashboard, status: int, reply: str, told: str) -> None:
    dashboard.status, dashboard.reply = status, reply
    with pytest.raises(ApplyError, match=told):
        apply_config(CONTENT, dashboard.addresses, timeout_s=10)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("DEPLOY_FAILED", "application clinic: DEPLOY_FAILED\nno GPU"),
        ("DEPLOYING", "not running within --timeout_s: application clinic: DEPLOYING"),
    ],
)
def test_what_does_not_come_to_run_is_told(dashboard: Dashboard, state: str, told: str) -> None:
    dashboard.states = [state]
    with pytest.raises(ApplyError, match=told):
        apply_config(CONTENT, dashboard.addresses, timeout_s=0.1)


def test_nobody_there_names_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ApplyError, match="start the service first .make serve., or name its"):
            apply_config(CONTENT, Addresses(nobody, nobody), timeout_s=1)


def config(tmp_path: Path, port: int, **user_config: Any) -> Path:
    application = {
        "name": "clinic",
        "import_path": "deployments.app:build",
        "deployments": [{"name": "Router", "user_config": user_config}],
    }
    content = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_command_applies_a_checked_file(
    dashboard: Dashboard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, dashboard.port, min_confidence=0.5)
    at = ["--dashboard", f"http://127.0.0.1:{dashboard.port}/"]
    assert launch.main(["--apply", str(path), *at]) == 0
    assert f"http://127.0.0.1:{dashboard.port} runs with {path}" in capsys.readouterr().out
    assert dashboard.received[0][1] == yaml.safe_load(path.read_text())
    dashboard.status = 403
    assert launch.main(["--apply", str(path), *at]) == 1
    assert "refuses our token" in capsys.readouterr().err


def test_a_file_with_a_problem_is_not_sent(
    dashboard: Dashboard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tmp_path, dashboard.port, min_confidenc=0.5)
    at = ["--dashboard", f"http://127.0.0.1:{dashboard.port}"]
    assert launch.main(["--apply", str(path), *at]) == 2
    assert "did you mean 'min_confidence'" in capsys.readouterr().err
    assert dashboard.received == []


def test_a_new_service_takes_no_dashboard(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launch.main(["serve_config.yaml", "--dashboard", "http://127.0.0.1:8266"])
    assert "only with --apply" in capsys.readouterr().err
