"""What a benchmark says that each process took of the processors."""

import subprocess
import sys

import pytest

from scripts.benchmarks.over_http.cpu_time import OTHER, role_of, seconds_by_role, spent


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("python -m deployments.engine_process.main 64 67", "engine process"),
        ("ray::ServeReplica:clinic:Model", "model replica"),
        ("ray::ServeReplica:clinic:Router.handle_request_streaming", "router replica"),
        ("ray::ProxyActor", "HTTP proxy"),
        ("ray::ServeController.listen_for_change", "Serve controller"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/s", "raylet"),
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/ray", "GCS"),
        ("ray::DashboardAgent", "dashboard agent"),
        ("ray::RuntimeEnvAgent", "runtime env agent"),
        ("ray-dashboard-NodeHead-0 (python -c x)", "dashboard"),
        ("python -u /x/ray/_private/log_monitor.py --session-dir=/tmp", "log monitor"),
        ("python -c from multiprocessing.spawn import spawn_main", "client"),
        ("sleep 5", OTHER),
    ],
)
def test_a_process_is_known_by_its_command(command: str, role: str) -> None:
    assert role_of(command) == role


def test_what_was_spent_is_the_difference_largest_first() -> None:
    before, after = {"a": 1.0, "b": 2.0}, {"a": 1.5, "b": 4.0, "c": 0.25, "d": 0.0}
    assert spent(before, after, 2.0) == {"b": 1.0, "a": 0.25, "c": 0.125}


def test_a_process_that_works_is_seen_and_one_that_has_ended_is_left_out() -> None:
    work = "while time.process_time() < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", f"import sys, time  # deployments.engine_process\n{work}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    before = seconds_by_role([]).get("engine process", 0.0)  # of other tests in this process
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        seconds = seconds_by_role([2**22 + 1])["engine process"] - before
        process.stdin.close()
    assert 0.25 <= seconds < 5
