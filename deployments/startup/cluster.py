"""Run Serve in a new local Ray cluster; the launcher starts this module as its child process.

    python -m deployments.startup.cluster serve_config.yaml --dashboard_port 8265

`serve run` alone cannot choose the ports of the dashboard and of the metrics, and the launcher has
to know them.
"""

import argparse
import contextlib
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deployments.settings import PROJECT_ROOT
from deployments.startup.config_file import application_of, drain_s, read_config
from deployments.startup.draining import NAMESPACE, Drain, on_interrupt
from deployments.startup.status import DASHBOARD_PORT, token_file

# The paths of Ray's sockets are 72 characters longer, and a socket's path may have 107.
_LONGEST_TEMP_DIR = 34
# Set only where the environment does not say otherwise.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.ingress.proxy:middlewares",
    # Ray binds every interface otherwise, whatever address it is given.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A proxy that has died is noticed at its next health check; Serve's default is 10 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # Between proxy, routers and models: half the processor time of Ray's objects, and the replicas
    # listen for it whether or not it is used (docs/serving_path.md).
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # What Ray and Serve do while nobody asks: the controller looks at the whole cluster in each of
    # its rounds (0.1 s), replicas sum up their metrics (0.1 s), which are exported every 10 s.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    # Ray starts its workers, so all of the service, with 15: whatever else runs would come first.
    "RAY_worker_niceness": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    # glibc keeps an arena for each thread otherwise, and torch has many.
    "MALLOC_ARENA_MAX": "2",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m deployments.startup.cluster")
    parser.add_argument("config", type=Path)
    parser.add_argument("--dashboard_port", type=int, default=DASHBOARD_PORT)
    parser.add_argument("--metrics_port", type=int, help="for Prometheus; default: any")
    args = parser.parse_args(argv)
    import ray
    from ray.serve.scripts import cli

    content, _ = read_config(args.config)
    drain = Drain(str(application_of(content).get("name", "default")), lambda: drain_s(args.config))
    # `local`: a new cluster, whatever RAY_ADDRESS or the local cluster file names.
    ray.init(
        address="local",
        namespace=NAMESPACE,
        dashboard_port=args.dashboard_port,
        _metrics_export_port=args.metrics_port,
    )
    with contextlib.suppress(OSError):  # none, or another user's
        token_file().chmod(0o600)  # one of before may be readable by others
    drain.prepare()
    on_interrupt(drain)
    cli(["run", str(args.config), "--address", "auto"])  # auto: the one that we are connected to


def private_temp_dir() -> Path | None:
    """Make a folder for Ray's sessions that this user alone may enter, and return it.

    Ray opens its own folders, with sockets and logs, to everybody, whatever the umask, and again
    with each worker that starts. Returns None where no such folder can be had.
    """
    folder = Path(tempfile.gettempdir()) / f"polyclinic-{os.getuid()}"
    if len(str(folder)) > _LONGEST_TEMP_DIR:
        return None
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            return None  # somebody was here before: Ray's default is no worse
        folder.chmod(0o700)
    except OSError:
        return None
    return folder


def serve_command(config: Path, dashboard_port: int, metrics_port: int | None = None) -> list[str]:
    """Return the command that runs Serve with this configuration."""
    command = [sys.executable, "-m", "deployments.startup.cluster", str(config)]
    if metrics_port is not None:
        command += ["--metrics_port", str(metrics_port)]
    return [*command, "--dashboard_port", str(dashboard_port)]


def serve_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of that command; what is inherited has priority over ours."""
    environment = {**ENVIRONMENT, **inherited}
    folder = None if "RAY_TMPDIR" in environment else private_temp_dir()
    if folder is not None:
        environment["RAY_TMPDIR"] = str(folder)
    paths = [str(PROJECT_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


@contextlib.contextmanager
def claimed(port: int) -> Iterator[bool]:
    """Keep other launchers of this machine from a port; gives whether it is ours.

    Ray's proxy shares its port (SO_REUSEPORT), and binds it long after the preflight has looked:
    two clinics that start together would get each other's requests.
    """
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            if sys.platform == "linux":  # unix(7): a name without a file, gone with this process
                claim.bind(f"\0polyclinic-port-{port}")
        except OSError:
            yield False
        else:
            yield True


def free_port(preferred: int | None = None) -> int:
    """Return `preferred` if nothing listens on it on loopback, else a port that is free now."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", preferred or 0))
        except OSError:
            return free_port()
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
