"""The launcher with a small stand-in for `serve run`: ready, failing, dying, stubborn, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments.settings import PROJECT_ROOT
from deployments.startup.processes import ProcessTree
from deployments.startup.supervision import GRACE_S, ORPHANS_GRACE_S
from tests.e2e.conftest import free_port

pytestmark = pytest.mark.slow  # whole runs: seconds together

# Answers as Ray's dashboard and as the application, on one port. {status} is the application's.
CHILD = """
import http.server, json, os, signal, subprocess, sys, time
if {stubborn}:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import signal, time; "
        "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"], start_new_session=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/readyz":
            if os.path.exists({silence!r}):
                time.sleep(30)
            body = {{"base_model": "tiny", "device": "cpu", "dtype": "x",
                "adapters": [{{"name": "derm"}}]}}
        else:
            body = {{"applications": {{"clinic": {{"status": "{status}", "message": {message!r},
                "deployments": {{}}}}}}}}
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Handler)
try:
    server.serve_forever()
except KeyboardInterrupt:
    sys.exit(0)
"""
LAUNCHER = """
import functools, sys
from deployments.startup.status import Addresses
from deployments.startup import supervision, watch
from deployments.startup.supervision import supervise
from deployments.startup.watch import Patience
supervision.POLL_S = watch.PERIOD_S = 0.1
watch.probe_readiness = functools.partial(watch.probe_readiness, timeout_s=1)
url = "http://127.0.0.1:{port}"
addresses = Addresses(url, url)
sys.exit(supervise([sys.executable, {child!r}], addresses, timeout_s={timeout}, grace_s=2,
    drain_s=lambda: {drain}, patience=Patience(unanswered_s=1)))
"""


class Launched:
    """A launcher in a process of its own, since it takes over signals."""

    def __init__(
        self, tmp_path: Path, child: str, *, port: int, timeout: float = 30, drain: float = 0
    ) -> None:
        script = tmp_path / "child.py"
        script.write_text(child)
        code = LAUNCHER.format(port=port, child=str(script), timeout=timeout, drain=drain)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=PROJECT_ROOT,
            # A proxy that is not there: our own server is asked without it.
            env={**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_as_a_terminal_starts_it,
            text=True,
        )
        self.tree = ProcessTree(self.process.pid)

    def wait_for(self, words: str) -> str:
        assert self.process.stdout is not None
        seen = ""
        for line in self.process.stdout:
            seen += line
            if words in line:
                self.tree.refresh()
                return seen
        pytest.fail(f"'{words}' was never said; it said: {seen}")

    def end(self, timeout: float = 20) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=timeout)
        return self.process.returncode, output


def _as_a_terminal_starts_it() -> None:
    """Under nohup an ignored SIGHUP would be inherited."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def child(
    port: int,
    *,
    status: str = "RUNNING",
    message: str = "",
    stubborn: bool = False,
    silence: str = "",
) -> str:
    """`silence`: from when this file exists, /readyz gets no answer."""
    return CHILD.format(
        port=port, status=status, message=message, stubborn=stubborn, silence=silence
    )


def others_alive(launched: Launched) -> list[int]:
    return [pid for pid in launched.tree.alive() if pid != launched.process.pid]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ready_then_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    launched = Launched(tmp_path, child(port), port=port)
    said = launched.wait_for("curl -s http")
    assert "launch: ready after" in said
    assert "adapters: derm" in said
    assert others_alive(launched)
    launched.process.send_signal(number)
    launched.process.send_signal(number)  # an impatient operator
    code, output = launched.end()
    assert code == 0
    assert "stopping" in output
    assert "Traceback" not in output
    assert others_alive(launched) == []


@pytest.mark.alone
@pytest.mark.slow
def test_a_child_that_ignores_ctrl_c_is_ended_with_its_daemons(tmp_path: Path) -> None:
    port = free_port()
    launched = Launched(tmp_path, child(port, stubborn=True), port=port)
    launched.wait_for("curl -s http")
    time.sleep(0.7)  # the launcher has seen the daemon by then
    launched.tree.refresh()
    assert len(others_alive(launched)) == 2
    started = time.monotonic()
    launched.process.send_signal(signal.SIGINT)
    code, output = launched.end()
    assert code == 0
    assert "ended 2 process(es)" in output
    assert GRACE_S <= 8  # with the killing, that leaves 2 of the 10 seconds promised
    assert ORPHANS_GRACE_S < GRACE_S
    assert time.monotonic() - started < 6  # 3.6 to 4.1 seen on slow cores
    assert others_alive(launched) == []


@pytest.mark.slow
def test_a_second_signal_ends_at_once_what_is_still_draining(tmp_path: Path) -> None:
    port = free_port()
    launched = Launched(tmp_path, child(port, stubborn=True), port=port, drain=60)
    launched.wait_for("curl -s http")
    time.sleep(0.5)
    launched.process.send_signal(signal.SIGTERM)
    launched.wait_for("a second signal ends them at once")
    time.sleep(0.5)
    assert launched.process.poll() is None, "it waits for the answers in progress"
    started = time.monotonic()
    launched.process.send_signal(signal.SIGTERM)
    code, _ = launched.end()
    assert (code, others_alive(launched)) == (0, [])
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_service_that_answers_no_more_is_ended_and_the_cause_told(tmp_path: Path) -> None:
    port, silence = free_port(), tmp_path / "silence"
    launched = Launched(tmp_path, child(port, silence=str(silence)), port=port)
    launched.wait_for("curl -s http")
    silence.touch()
    code, output = launched.end()
    assert code == 1
    assert "launch: /readyz has not been answered for" in output
    assert "timed out" in output
    assert others_alive(launched) == []


def test_a_failed_deploy_prints_the_cause(tmp_path: Path) -> None:
    port = free_port()
    message = (
        'Deploying app failed:\nTraceback (most recent call last):\n  File "x.py", line 3, in f\n'
        "    build(args)\ndeployments.settings.SettingsError: 1 problem in args:\n"
        "  - base_modl: unknown key"
    )
    launched = Launched(tmp_path, child(port, status="DEPLOY_FAILED", message=message), port=port)
    code, output = launched.end()
    assert code == 1
    assert "application clinic: DEPLOY_FAILED\ndeployments.settings.SettingsError" in output
    assert "  - base_modl: unknown key" in output
    assert "x.py" not in output
    assert others_alive(launched) == []


def test_what_it_starts_makes_files_for_this_user_only(tmp_path: Path) -> None:
    script = f"open({str(tmp_path / 'made')!r}, 'w'); raise SystemExit(7)"
    Launched(tmp_path, script, port=free_port()).end()
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600


def test_a_child_that_dies_is_told(tmp_path: Path) -> None:
    launched = Launched(tmp_path, "raise SystemExit(7)", port=free_port())
    code, output = launched.end()
    assert code == 1
    assert "serve ended with exit code 7" in output


@pytest.mark.slow
def test_the_time_limit_is_told_with_what_ray_waits_for(tmp_path: Path) -> None:
    port = free_port()
    slow = child(port, status="DEPLOYING", message="no GPU yet")
    launched = Launched(tmp_path, slow, port=port, timeout=2)
    code, output = launched.end()
    assert code == 1
    assert "not ready within --timeout_s: application clinic: DEPLOYING\nno GPU yet" in output
    assert others_alive(launched) == []


def test_ctrl_c_before_it_is_ready(tmp_path: Path) -> None:
    port = free_port()
    launched = Launched(tmp_path, child(port, status="DEPLOYING"), port=port)
    launched.wait_for("launch: started")
    launched.process.send_signal(signal.SIGINT)
    code, output = launched.end()
    assert code == 0
    assert "stopping" in output
    assert others_alive(launched) == []
