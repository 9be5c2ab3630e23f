"""A Ray Serve of our own for a benchmark: written configuration, one process tree, all of it ended.

Loopback only. `fast` is Ray's HAProxy ingress and throughput mode, which opens ports 9101 and 8404
on all interfaces: it must run in a network namespace of its own (`in_private_network`).
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from deployments.launch import ENVIRONMENT
from deployments.settings import PROJECT_ROOT
from deployments.startup.processes import ProcessTree

READY_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 20.0
_FAST = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
_INSIDE = "POLYCLINIC_PRIVATE_NETWORK"


def in_private_network(module: str, arguments: Sequence[str]) -> int | None:
    """Run `python -m module arguments` again where only a loopback exists; its exit status.

    None when this already is that run. Needs root, `unshare` and `ip`.
    """
    if os.environ.get(_INSIDE):
        return None
    inner = 'ip link set lo up && exec "$@"'
    command = [sys.executable, "-m", module, *arguments]
    wrapped = ["unshare", "-n", "sh", "-c", inner, "sh", *command]
    return subprocess.run(wrapped, env={**os.environ, _INSIDE: "1"}).returncode


@contextlib.contextmanager
def serving(
    folder: Path,
    applications: Sequence[dict[str, Any]],
    is_ready: Callable[[str], bool],
    *,
    fast: bool = False,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Iterator[tuple[str, ProcessTree]]:
    """Yields (base URL, its processes) once `is_ready(base URL)`.

    Raises:
        RuntimeError: Serve ended, or was not ready in time; its output is in `folder`/serve.log.
    """
    port = _free_port()
    config = folder / "serve.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": 300},
                "logging_config": {"log_level": "WARNING", "enable_access_log": False},
                "applications": list(applications),
            }
        )
    )
    environment = {**os.environ, **ENVIRONMENT, **(_FAST if fast else {})}
    paths = [str(PROJECT_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config), "-a", "local"]
    with open(folder / "serve.log", "wb") as log:
        child = subprocess.Popen(
            command,
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    tree = ProcessTree(child.pid)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(child, tree, lambda: is_ready(url), folder / "serve.log", ready_timeout_s)
        yield url, tree
    finally:
        _stop(child, tree)


def post_works(url: str, body: bytes, headers: dict[str, str]) -> bool:
    """Whether a POST gets a 200 now."""
    request = urllib.request.Request(
        url, body, {"content-type": "application/json", **headers}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return bool(response.status == 200)
    except OSError:  # also urllib's own errors
        return False


def _wait(
    child: "subprocess.Popen[bytes]",
    tree: ProcessTree,
    is_ready: Callable[[], bool],
    log: Path,
    timeout_s: float,
) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        tree.refresh()
        if child.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"Ray Serve is not ready (exit code {child.poll()}):\n{tail}")
        time.sleep(0.5)
    tree.refresh()


def _stop(child: "subprocess.Popen[bytes]", tree: ProcessTree) -> None:
    tree.refresh()
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_TIMEOUT_S)
    tree.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
