"""The launcher with a small stand-in for `serve run`: ready, failing, dying, stubborn, Ctrl-C."""

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from deployments.launch import GRACE_S, essence
from deployments.process_tree import ProcessTree
from deployments.settings import PROJECT_ROOT
from tests.e2e.conftest import free_port

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
import sys
from deployments.launch import Addresses, supervise
url = "http://127.0.0.1:{port}"
addresses = Addresses(url, url)
sys.exit(supervise([sys.executable, {child!r}], addresses, timeout_s={timeout}, grace_s=2))
"""


class Launched:
    """A launcher in a process of its own, since it takes over signals."""

    def __init__(self, tmp_path: Path, child: str, *, port: int, timeout: float = 30) -> None:
        script = tmp_path / "child.py"
        script.write_text(child)
        code = LAUNCHER.format(port=port, child=str(script), timeout=timeout)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=PROJECT_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
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


def child(port: int, *, status: str = "RUNNING", message: str = "", stubborn: bool = False) -> str:
    return CHILD.format(port=port, status=status, message=message, stubborn=stubborn)


def others_alive(launched: Launched) -> list[int]:
    return [pid for pid in launched.tree.alive() if pid != launched.process.pid]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ready_then_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    launched = Launched(tmp_path, child(port), port=port)
    said = launched.wait_for("curl -s http")
    assert "launch: ready after" in said
    assert "adapters: derm" in said
    assert others_alive(launched)
    launched.process.send_signal(number)
    code, output = launched.end()
    assert code == 0
    assert "stopping" in output
    assert others_alive(launched) == []


def test_a_child_that_ignores_ctrl_c_is_ended_with_its_daemons(tmp_path: Path) -> None:
    port = free_port()
    launched = Launched(tmp_path, child(port, stubborn=True), port=port)
    launched.wait_for("curl -s http")
    time.sleep(1.5)  # the launcher has seen the daemon by then
    launched.tree.refresh()
    assert len(others_alive(launched)) == 2
    started = time.monotonic()
    launched.process.send_signal(signal.SIGINT)
    code, output = launched.end()
    assert code == 0
    assert "ended 2 process(es)" in output
    assert GRACE_S <= 8  # with the killing, that leaves 2 of the 10 seconds promised
    assert time.monotonic() - started < 4
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


def test_a_child_that_dies_is_told(tmp_path: Path) -> None:
    launched = Launched(tmp_path, "raise SystemExit(7)", port=free_port())
    code, output = launched.end()
    assert code == 1
    assert "serve ended with exit code 7" in output


def test_the_time_limit_is_told(tmp_path: Path) -> None:
    port = free_port()
    launched = Launched(tmp_path, child(port, status="DEPLOYING"), port=port, timeout=2)
    code, output = launched.end()
    assert code == 1
    assert "time limit" in output


def test_essence_keeps_a_message_without_a_traceback() -> None:
    assert essence("replica failed to start\n") == "replica failed to start"


def test_a_process_tree_remembers_orphans() -> None:
    code = textwrap.dedent(
        """
        import subprocess, sys, time
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        subprocess.Popen(sleep, start_new_session=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    tree = ProcessTree(parent.pid)
    deadline = time.monotonic() + 10
    while len(tree.alive()) < 2:
        assert time.monotonic() < deadline
        tree.refresh()
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert len(tree.alive()) == 1
    assert tree.kill() == 1
    assert tree.alive() == []
