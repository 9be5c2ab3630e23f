"""Check a whole serve_config.yaml, and the machine, before Serve starts.

    python -m deployments.preflight serve_config.yaml              # what `make serve` runs first
    python -m deployments.preflight --no-machine serve_config.yaml # the file only, for CI

Prints all problems in one message and exits with 2, or one line and 0.
"""

import argparse
import os
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deployments.serve_schema import (
    DEPLOYMENTS,
    IMPORT_PATH,
    key_problems,
    read_config,
    value_problems,
)
from deployments.settings import (
    ModelLiveSettings,
    RouterLiveSettings,
    Settings,
    SettingsError,
    StrictModel,
    nearest,
    parse_settings,
    parse_strict,
    project_path,
)

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000  # Ray's own defaults
DASHBOARD_PORT = 8265
MIN_FREE_BYTES = 2 * 2**30
CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")
LIVE_SETTINGS: dict[str, type[StrictModel]] = {
    "Router": RouterLiveSettings,
    "Model": ModelLiveSettings,
}
# What the builder decides from `args`; in the YAML it would overrule the builder.
_BUILDERS_OWN = {
    "num_replicas": "model_replicas (Model) or router.replicas (Router)",
    "autoscaling_config": "model_replicas (Model) or router.replicas (Router)",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.preflight", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", type=Path)
    parser.add_argument("--no-machine", action="store_true", help="check the file only")
    args = parser.parse_args(argv)
    problems = check_file(args.config)
    if not args.no_machine:
        content, _ = read_config(args.config)
        problems += check_machine(*http_address(content))
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        print(f"preflight: {len(problems)} {noun} with {args.config}:\n{lines}", file=sys.stderr)
        return 2
    print(f"preflight: {args.config} is fine")
    return 0


def check_file(path: Path) -> list[str]:
    """Every problem of the file: Ray's sections, `args`, and each `user_config`."""
    content, problems = read_config(path)
    if problems:
        return problems
    problems = key_problems(content)
    if not problems:  # Ray's models would complain again, less clearly
        problems = value_problems(content)
    applications = content.get("applications")
    if not isinstance(applications, list) or len(applications) != 1:
        return [*problems, "applications: exactly one application is expected"]
    application = applications[0]
    if isinstance(application, Mapping):
        problems += _check_application(application)
    return problems


def http_address(content: Mapping[str, Any]) -> tuple[str, int]:
    """Host and port of the file's http_options; Ray's defaults where it gives none."""
    options = content.get("http_options")
    options = options if isinstance(options, Mapping) else {}
    host, port = options.get("host", DEFAULT_HOST), options.get("port", DEFAULT_PORT)
    return str(host), port if isinstance(port, int) else DEFAULT_PORT


def _check_application(application: Mapping[str, Any]) -> list[str]:
    problems = []
    import_path = application.get("import_path")
    if import_path != IMPORT_PATH:
        problems.append(f"import_path: is {import_path!r}; it must be '{IMPORT_PATH}'")
    args = application.get("args")
    if isinstance(args, Mapping):
        problems += check_args(args)
    elif args is not None:
        problems.append(f"args: a mapping of keys is expected (got {args!r})")
    deployments = application.get("deployments")
    for deployment in deployments if isinstance(deployments, list) else []:
        if isinstance(deployment, Mapping):
            problems += _check_deployment(deployment)
    return problems


def check_args(args: Mapping[str, Any]) -> list[str]:
    """Problems of `args`: keys, values, folders that do not exist, what excludes each other."""
    try:
        settings = parse_settings(args)
    except SettingsError as error:
        return [f"args.{problem}" for problem in error.problems]
    return [f"args.{problem}" for problem in _check_paths(settings)]


def _check_paths(settings: Settings) -> list[str]:
    problems = []
    if settings.adapters and not settings.catalog_dir.is_dir():
        problems.append(f"adapters: the folder {settings.catalog_dir} does not exist")
    if settings.router.artefact and not settings.router_dir.is_dir():
        problems.append(f"router.artefact: the folder {settings.router_dir} does not exist")
    looks_like_path = settings.base_model.startswith(("/", ".", "~"))
    if looks_like_path and not project_path(settings.base_model).is_dir():
        problems.append(
            f"base_model: the folder {project_path(settings.base_model)} does not exist"
        )
    if settings.quantization != "none" and settings.device == "cpu":
        problems.append(
            f"quantization: '{settings.quantization}' needs a GPU, and device is 'cpu': set "
            "quantization: none, or device: auto"
        )
    return problems


def _check_deployment(deployment: Mapping[str, Any]) -> list[str]:
    name = deployment.get("name")
    if name not in DEPLOYMENTS:
        hint = nearest(str(name), DEPLOYMENTS).replace("valid keys", "there are")
        return [f"deployments.{name}: no such deployment; {hint}"]
    problems = [
        f"deployments.{name}.{key}: the builder decides this; use args: {instead}"
        for key, instead in _BUILDERS_OWN.items()
        if deployment.get(key) is not None
    ]
    options = deployment.get("ray_actor_options")
    if isinstance(options, Mapping) and "num_gpus" in options:
        problems.append(
            f"deployments.{name}.ray_actor_options.num_gpus: the builder gives each Model "
            "replica one GPU; use args: device"
        )
    user_config = deployment.get("user_config")
    if user_config is None:
        return problems
    where = f"deployments.{name}.user_config"
    if not isinstance(user_config, Mapping):
        return [*problems, f"{where}: a mapping of keys is expected (got {user_config!r})"]
    try:
        parse_strict(LIVE_SETTINGS[str(name)], user_config, where)
    except SettingsError as error:
        problems += [f"{where}.{problem}" for problem in error.problems]
    return problems


def check_machine(host: str, port: int) -> list[str]:
    """Ports, a stale local cluster, disk space."""
    return [
        *check_port(host, port, "http_options.port", "choose another port, or end that server"),
        *check_port(
            "127.0.0.1",
            DASHBOARD_PORT,
            "Ray's dashboard",
            "another Ray cluster may run on this machine: end it first",
        ),
        *check_cluster_file(CLUSTER_FILE),
        *check_disk(Path(os.environ.get("RAY_TMPDIR", "/tmp")), "Ray's temporary folder"),
        *check_disk(_cache_parent(), "the cache of base models"),
    ]


def check_port(host: str, port: int, what: str, mend: str) -> list[str]:
    """A problem when something listens on the port, also if it shares it (SO_REUSEPORT)."""
    try:
        with socket.create_connection((_connectable(host), port), timeout=1):
            return [f"{what}: {host}:{port} is in use: {mend}"]
    except OSError:
        pass
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not held up by TIME_WAIT
        try:
            probe.bind((host, port))
        except OSError as error:
            return [f"{what}: {host}:{port} cannot be bound ({error.strerror}): {mend}"]
    return []


def check_cluster_file(file: Path) -> list[str]:
    """A problem when the file names a cluster that does not answer: Ray would wait for it."""
    try:
        address = file.read_text(encoding="utf-8").strip()
    except OSError:
        return []
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return []
    except (OSError, ValueError):
        return [
            f"{file}: names a local cluster ({address!r}) that does not answer, and Ray would "
            f"wait for it: delete the file (rm {file})"
        ]


def check_disk(folder: Path, what: str) -> list[str]:
    """A problem when less than MIN_FREE_BYTES are free."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free >= MIN_FREE_BYTES:
        return []
    return [
        f"{what} ({there}): {free // 2**20} MiB free, {MIN_FREE_BYTES // 2**20} MiB are needed: "
        "free some space"
    ]


def _cache_parent() -> Path:
    from adapters.base_models import default_cache_dir

    return default_cache_dir()


def _connectable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


if __name__ == "__main__":
    raise SystemExit(main())
