"""One Ray instance for each worker of the test session, on loopback, with two simulated GPUs.

Ray's processes inherit the environment set here before it starts.
"""

import functools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NUM_SIMULATED_GPUS = 2
READY_TIMEOUT_S = 240

# Files that share an application run on one worker; any other file may run on any.
GROUPS = {
    "test_front_door.py": "door",
    "test_shared_limits.py": "door",
    "test_clients.py": "clients",
    "test_client_features.py": "clients",
    "test_engine_death.py": "clients",
}
DOOR_STEP_S = 0.01

Deploy = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As `--dist loadfile`, but for GROUPS. (The marks of `--dist loadgroup` change ids of tests,
    which pytest 9.2 does not let them.)"""
    from xdist.scheduler import LoadFileScheduling

    class InGroups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return GROUPS.get(Path(file).name, file)

    return InGroups(config, log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="session")
def serve_url() -> Iterator[str]:
    """Starts Ray and Serve once; yields the proxy's address."""
    from deployments.startup.cluster import ENVIRONMENT

    without_token = {"RAY_AUTH_MODE", "PYTHONWARNINGS"}
    for name in ENVIRONMENT.keys() - without_token:  # as the launcher has it
        os.environ.setdefault(name, ENVIRONMENT[name])
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    import ray
    from ray import serve

    port = free_port()
    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=NUM_SIMULATED_GPUS,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        logging_level="warning",
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def deploy(serve_url: str) -> Deploy:
    """`with deploy(app, "name") as client:` -> an httpx client of that application."""
    from ray import serve

    @contextmanager
    def deployed(app: Any, name: str) -> Iterator[httpx.Client]:
        serve.run(app, name=name, route_prefix=f"/{name}", blocking=False)
        try:
            with httpx.Client(base_url=f"{serve_url}/{name}", timeout=180) as client:
                wait_until_ready(client)
                yield client
        finally:
            serve.delete(name, _blocking=False)  # it ends while the next one starts

    return deployed


@pytest.fixture(scope="session")
def door_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of `door`, with its keys."""
    return tmp_path_factory.mktemp("door-state")


@pytest.fixture(scope="session")
def door(deploy: Deploy, door_state: Path, tiny_router_dir: Path) -> Iterator[httpx.Client]:
    """Two router replicas that ask for keys; the model is a stand-in, DOOR_STEP_S a token."""
    from deployments.app import build_application
    from deployments.settings import parse_settings
    from scripts.benchmarks.over_http.stand_in_model import load_stand_in

    settings = parse_settings(
        {
            "device": "cpu",
            "auth": {"mode": "keys"},
            "state_dir": str(door_state),
            "engine": {"max_rows": 32, "max_output_tokens": 4096, "max_waiting": 1000},
            "router": {"artefact": str(tiny_router_dir), "replicas": 2},
        }
    )
    load = functools.partial(load_stand_in, step_s=DOOR_STEP_S)
    with deploy(build_application(settings, load=load), "door") as client:
        yield client


@pytest.fixture(scope="session")
def tiny_clinic(
    deploy: Deploy,
    tiny_catalogs: dict[str, tuple[Path, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[httpx.Client]:
    """A tiny Llama with its two adapters, in an engine's process, behind one router replica."""
    from deployments.app import build_application
    from deployments.settings import parse_settings

    base, catalog = tiny_catalogs["llama"]
    settings = parse_settings(
        {
            "base_model": str(base),
            "adapters": str(catalog),
            "state_dir": str(tmp_path_factory.mktemp("state")),
            "device": "cpu",
            "engine": {
                "dtype": "float32",
                "max_rows": 8,
                "max_input_tokens": 400,
                "cpu_threads": 1,
            },
        }
    )
    with deploy(build_application(settings), "tiny") as client:
        yield client


def wait_until_ready(client: httpx.Client) -> dict[str, Any]:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        response = client.get("/readyz")
        if response.status_code == 200:
            report: dict[str, Any] = response.json()
            return report
        if time.monotonic() > deadline:
            pytest.fail(f"not ready after {READY_TIMEOUT_S} s: {response.text}")
        time.sleep(0.2)


def pytest_report_header() -> list[str]:
    from importlib import metadata

    names = ("ray", "torch", "transformers", "peft", "starlette", "openai")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return [f"python {sys.version.split()[0]}; {versions}"]
