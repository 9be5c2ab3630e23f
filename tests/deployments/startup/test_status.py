"""What the launcher understands of Ray's dashboard and of /readyz."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.startup.status import (
    Addresses,
    addresses_of,
    application_states,
    describe_states,
    essence,
    failure,
    readiness,
    welcome,
)


def config(**http_options: Any) -> dict[str, Any]:
    return {"http_options": http_options, "applications": [{}]}


@pytest.mark.parametrize(
    ("content", "url"),
    [
        ({"applications": [{}]}, "http://127.0.0.1:8000"),
        (config(host="0.0.0.0", port=9000), "http://127.0.0.1:9000"),
        (config(host="::", port=9000), "http://[::1]:9000"),
        (config(ssl_certfile="c.pem"), "https://127.0.0.1:8000"),
        ({"applications": [{"route_prefix": "/clinic"}]}, "http://127.0.0.1:8000/clinic"),
        ({"applications": [{"route_prefix": "/"}]}, "http://127.0.0.1:8000"),
    ],
)
def test_the_address_to_ask_is_the_files(content: dict[str, Any], url: str) -> None:
    assert addresses_of(content).app == url


def test_a_message_without_a_traceback_stays() -> None:
    assert essence("replica failed to start\n") == "replica failed to start"


def test_only_the_exception_is_kept_of_a_traceback() -> None:
    message = (
        'Deploying app failed:\nTraceback (most recent call last):\n  File "x.py", line 3, in f\n'
        "    build(args)\n        ^^^^\ndeployments.settings.SettingsError: 1 problem in args:\n"
        "  - base_modl: unknown key"
    )
    assert essence(message) == (
        "deployments.settings.SettingsError: 1 problem in args:\n  - base_modl: unknown key"
    )


@pytest.mark.parametrize("status", ["DEPLOY_FAILED", "UNHEALTHY"])
def test_a_failure_names_the_application_and_each_cause_once(status: str) -> None:
    state = {
        "status": status,
        "message": "no model",
        "deployments": {"Model": {"message": "no GPU"}, "Router": {"message": "no model"}},
    }
    assert failure({"a": {"status": "RUNNING"}}) is None
    assert failure({"a": state, "b": {"status": "RUNNING"}}) == (
        f"application a: {status}\nno model\nno GPU"
    )


def test_states_are_told_even_when_there_are_none() -> None:
    assert describe_states({}) == "Ray Serve has not reported an application"
    assert describe_states({"a": {"status": "DEPLOYING", "deployments": None}}) == (
        "application a: DEPLOYING"
    )


def test_the_welcome_shows_where_and_what() -> None:
    report = {"base_model": "tiny", "device": "cpu", "adapters": [{"name": "derm"}, "heart"]}
    text = welcome(Addresses("http://h:1"), report, 12.4)
    assert "ready after 12 s at http://h:1" in text
    assert "base_model tiny; device cpu; adapters: derm, heart\n" in text
    assert text.count("  curl -s http://h:1/") == 3
    assert "curl -sk https" in welcome(Addresses("https://h:1"), {}, 1)


def test_a_report_of_another_shape_is_no_crash() -> None:
    assert "adapters: none" in welcome(Addresses("http://h:1"), {"adapters": None}, 1)


class Server:
    """Answers every path with `body`, and keeps the headers that it was sent."""

    def __init__(self) -> None:
        self.body: bytes = b"{}"
        self.status = 200
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.headers = dict(self.headers)
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        url = f"http://127.0.0.1:{self.http.server_port}"
        self.addresses = Addresses(url, url)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def test_the_dashboard_gets_rays_token_and_the_application_does_not(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    server.body = json.dumps({"applications": {"a": {"status": "RUNNING"}}}).encode()
    assert application_states(server.addresses) == {"a": {"status": "RUNNING"}}
    assert "Authorization" not in server.headers
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("from-home\n")
    application_states(server.addresses)
    assert server.headers["Authorization"] == "Bearer from-home"
    other = tmp_path / "other"
    other.write_text("from-path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    application_states(server.addresses)
    assert server.headers["Authorization"] == "Bearer from-path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    application_states(server.addresses)
    assert server.headers["Authorization"] == "Bearer from-variable"
    readiness(server.addresses)
    assert "Authorization" not in server.headers


@pytest.mark.parametrize(
    ("status", "body"), [(503, b"{}"), (200, b"<html>"), (200, b"[]"), (401, b"")]
)
def test_anything_but_a_good_answer_is_not_ready(server: Server, status: int, body: bytes) -> None:
    server.status, server.body = status, body
    assert readiness(server.addresses) is None
    assert application_states(server.addresses) == {}


def test_nobody_there_is_not_ready() -> None:
    assert readiness(Addresses("http://127.0.0.1:9")) is None
