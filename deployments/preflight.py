"""Check a whole serve_config.yaml, and the machine, before Serve starts.

    python -m deployments.preflight serve_config.yaml              # what `make serve` runs first
    python -m deployments.preflight --no-machine serve_config.yaml # the file only, for CI

Prints all problems in one message and exits with 2, or one line and 0.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from deployments.messages import GRACE_S
from deployments.settings import (
    ModelLiveSettings,
    RouterLiveSettings,
    Settings,
    parse_settings,
    project_path,
)
from deployments.startup.checks import (
    check_machine,
    exposure_problems,
    key_file_problems,
    machine_notes,
)
from deployments.startup.config_file import (
    DEPLOYMENTS,
    IMPORT_PATH,
    key_problems,
    read_config,
    value_problems,
)
from deployments.strict_model import SettingsError, StrictModel, nearest, parse_strict

DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", 8000  # Ray's own, of a file that says nothing
LIVE_SETTINGS: dict[str, type[StrictModel]] = {
    "Router": RouterLiveSettings,
    "Model": ModelLiveSettings,
}
# What the builder decides from `args`; in the YAML it would overrule the builder.
_BUILDERS_OWN = ("num_replicas", "autoscaling_config")
_INSTEAD = {"Router": "router.replicas", "Model": "model_replicas"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.preflight", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", type=Path)
    parser.add_argument("--no-machine", action="store_true", help="check the file only")
    args = parser.parse_args(argv)
    problems, notes = check_file(args.config), []
    if not args.no_machine:
        content, _ = read_config(args.config)
        problems += check_machine(*http_address(content)) + _check_keys(content)
        notes = machine_notes()
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        print(f"preflight: {len(problems)} {noun} with {args.config}:\n{lines}", file=sys.stderr)
        return 2
    print(f"preflight: {args.config} is fine" + (f" ({'; '.join(notes)})" if notes else ""))
    return 0


def check_file(path: Path) -> list[str]:
    """Every problem of the file: Ray's sections, `args`, and each `user_config`."""
    content, problems = read_config(path)
    if problems:
        return problems
    problems = [*key_problems(content), *value_problems(content), *_check_http(content)]
    applications = content.get("applications")
    if not isinstance(applications, list) or len(applications) != 1:
        return [*problems, "applications: exactly one application is expected"]
    application = applications[0]
    if isinstance(application, Mapping):
        problems += _check_application(application)
        problems += _check_exposure(content, application)
    return problems


def _check_exposure(content: Mapping[str, Any], application: Mapping[str, Any]) -> list[str]:
    settings = _settings_of(application)
    if settings is None:
        return []
    return [f"args.{problem}" for problem in exposure_problems(http_address(content)[0], settings)]


def _check_keys(content: Mapping[str, Any]) -> list[str]:
    """The key file of this machine, once the configuration itself is fine."""
    applications = content.get("applications")
    first = applications[0] if isinstance(applications, list) and applications else None
    settings = _settings_of(first) if isinstance(first, Mapping) else None
    return [f"args.{problem}" for problem in key_file_problems(settings)] if settings else []


def _settings_of(application: Mapping[str, Any]) -> Settings | None:
    """None where `args` are wrong, which is a problem that is named elsewhere."""
    args = application.get("args")
    try:
        return parse_settings(args if isinstance(args, Mapping) else {})
    except SettingsError:
        return None


def http_address(content: Mapping[str, Any]) -> tuple[str, int]:
    """Host and port of the file's http_options; Ray's defaults where it gives none."""
    options = content.get("http_options")
    options = options if isinstance(options, Mapping) else {}
    host, port = options.get("host", DEFAULT_HOST), options.get("port", DEFAULT_PORT)
    return str(host), port if _is_port(port) else DEFAULT_PORT


def _is_port(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65_535


def _check_http(content: Mapping[str, Any]) -> list[str]:
    """What Ray accepts, and then nobody can reach the clinic."""
    problems = []
    options = content.get("http_options")
    port = options.get("port", DEFAULT_PORT) if isinstance(options, Mapping) else DEFAULT_PORT
    if not _is_port(port):
        problems.append(f"http_options.port: a number from 1 to 65535 is expected (got {port!r})")
    if content.get("proxy_location") == "Disabled":
        problems.append(
            "proxy_location: 'Disabled' starts no HTTP server: use EveryNode, or HeadOnly"
        )
    return problems + _check_deadline(content)


def _check_deadline(content: Mapping[str, Any]) -> list[str]:
    """An answer has to end before Ray's server cuts it off without a word."""
    options = content.get("http_options")
    limit_s = options.get("request_timeout_s") if isinstance(options, Mapping) else None
    given = _router_config(content).get("max_timeout_s", RouterLiveSettings().max_timeout_s)
    are_numbers = isinstance(limit_s, int | float) and isinstance(given, int | float)
    if not are_numbers or given + GRACE_S < limit_s:
        return []
    return [
        f"http_options.request_timeout_s: {limit_s} s ends requests before the Router's "
        f"max_timeout_s of {given} s (and {GRACE_S:g} s of grace) does: raise it, or lower "
        "max_timeout_s in the Router's user_config"
    ]


def _router_config(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The Router's user_config; empty where there is none, or none that can be read."""
    applications = content.get("applications")
    for application in applications if isinstance(applications, list) else []:
        listed = application.get("deployments") if isinstance(application, Mapping) else None
        for deployment in listed if isinstance(listed, list) else []:
            if isinstance(deployment, Mapping) and deployment.get("name") == "Router":
                config = deployment.get("user_config")
                return config if isinstance(config, Mapping) else {}
    return {}


def _check_application(application: Mapping[str, Any]) -> list[str]:
    problems = []
    import_path = application.get("import_path")
    if import_path != IMPORT_PATH:
        problems.append(f"import_path: is {import_path!r}; it must be '{IMPORT_PATH}'")
    if application.get("route_prefix", "/") is None:
        problems.append("route_prefix: null gives no HTTP route to the clinic: use /")
    args = application.get("args")
    if isinstance(args, Mapping):
        problems += check_args(args)
    elif args is not None:
        problems.append(f"args: a mapping of keys is expected (got {args!r})")
    deployments = application.get("deployments")
    listed = deployments if isinstance(deployments, list) else []
    mappings = [deployment for deployment in listed if isinstance(deployment, Mapping)]
    for deployment in mappings:
        problems += _check_deployment(deployment)
    for name, times in Counter(str(deployment.get("name")) for deployment in mappings).items():
        if times > 1:
            problems.append(f"deployments.{name}: is listed {times} times; keep one")
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
        f"deployments.{name}.{key}: the builder decides this; use args: {_INSTEAD[str(name)]}"
        for key in _BUILDERS_OWN
        if deployment.get(key) is not None
    ]
    problems += _check_actor_options(str(name), deployment.get("ray_actor_options"))
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


def _check_actor_options(name: str, options: Any) -> list[str]:
    """Ray takes them instead of the builder's, not on top: one key more, and the GPU is gone."""
    where = f"deployments.{name}.ray_actor_options"
    if isinstance(options, Mapping) and "num_gpus" in options:
        return [
            f"{where}.num_gpus: the builder gives each Model replica one GPU, where there is one; "
            "use args: device"
        ]
    if name == "Model" and options:
        return [
            f"{where}: they would replace the builder's whole set, num_gpus too, and the model "
            "would get no GPU: take them out; args: device and args: engine.cpu_threads decide"
        ]
    return []


if __name__ == "__main__":
    raise SystemExit(main())
