"""Start a private Ray Serve for a benchmark, on loopback, and end all its processes afterwards.

`fast` is Ray's HAProxy ingress and throughput mode, which opens ports 9101 and 8404 on all
interfaces: it must run in a private network namespace (`in_private_network`).
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from deployments.api.access.api_keys import KeyKind, KeyStore, new_key
from deployments.settings import PROJECT_ROOT
from deployments.startup.cluster import free_port, serve_command, serve_environment
from deployments.startup.processes import ProcessTree
from scripts.benchmarks.over_http.http_client import connect
from scripts.benchmarks.over_http.loopback import in_new_namespace

READY_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 20.0
_FAST = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
PRIVATE_NETWORK = "POLYCLINIC_PRIVATE_NETWORK"  # set inside a network namespace


def in_private_network(arguments: Sequence[str]) -> int | None:
    """Run this benchmark again in a network namespace that has only loopback; return its status.

    Returns None if this already is that run. Needs root and `unshare`.
    """
    if os.environ.get(PRIVATE_NETWORK):
        return None
    command = [sys.executable, "-m", "scripts.benchmark", *arguments]
    return subprocess.run(
        in_new_namespace(command), env={**os.environ, PRIVATE_NETWORK: "1"}
    ).returncode


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    applications: Sequence[dict[str, Any]],
    is_ready: Callable[[aiohttp.ClientSession, str], Awaitable[bool]],
    *,
    fast: bool = False,
    ready_timeout_s: float = READY_TIMEOUT_S,
    dashboard_port: int | None = None,
    metrics_port: int | None = None,
    sections: Mapping[str, Any] | None = None,
) -> AsyncIterator[tuple[aiohttp.ClientSession, str, ProcessTree]]:
    """Yield (client, base URL, processes of Serve) once `is_ready(client, base URL)`.

    Args:
        dashboard_port, metrics_port: of Ray's, for those who ask there; None: any.
        sections: further ones of serve.yaml, in place of those that are written here.

    Raises:
        RuntimeError: Serve ended, or was not ready in time; its output is in `folder`/serve.log.
    """
    port = free_port()
    config = folder / "serve.yaml"
    content = {
        "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": 300},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": list(applications),
        **(sections or {}),
    }
    config.write_text(yaml.safe_dump(content))
    environment = serve_environment({**os.environ, **(_FAST if fast else {})})
    with open(folder / "serve.log", "wb") as log:
        child = subprocess.Popen(
            serve_command(config, dashboard_port or free_port(), metrics_port),
            cwd=PROJECT_ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    tree = ProcessTree(child.pid)
    url = f"http://127.0.0.1:{port}"
    try:
        async with connect() as session:
            deadline = time.monotonic() + ready_timeout_s
            while not await _within(is_ready(session, url), deadline - time.monotonic()):
                tree.refresh()
                if child.poll() is not None or time.monotonic() > deadline:
                    tail = (folder / "serve.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"Serve is not ready (exit code {child.poll()}):\n{tail}")
                await asyncio.sleep(0.5)
            tree.refresh()
            yield session, url, tree
    finally:
        _stop(child, tree)


async def _within(ready: Awaitable[bool], seconds: float) -> bool:
    """Return what `ready` says, or False if it says nothing for so long."""
    try:
        return await asyncio.wait_for(ready, max(1.0, seconds))
    except TimeoutError:
        return False


def key_headers(state: Path, *kinds: KeyKind) -> list[dict[str, str]]:
    """Write one API key of each kind for an application with this `state_dir`; return headers.

    The limits are so high that the limiter works on every request and refuses none.
    """
    made = [
        new_key(
            kind,
            requests_per_minute=1_000_000,
            tokens_per_minute=1_000_000_000,
            max_concurrent=1024,
        )
        for kind in kinds
    ]
    KeyStore(state).change(lambda records: [record for _, record in made])
    return [{"authorization": f"Bearer {key}"} for key, _ in made]


def _stop(child: "subprocess.Popen[bytes]", tree: ProcessTree) -> None:
    tree.refresh()
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_TIMEOUT_S)
    tree.kill()
