"""Check a whole serve_config.yaml, and the machine, before Serve starts.

    python -m deployments.preflight serve_config.yaml              # what `make serve` runs first
    python -m deployments.preflight --no-machine serve_config.yaml # the file only, for CI

Prints all problems in one message and exits with 2, or one line and 0.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deployments.live_settings import RouterLiveSettings
from deployments.messages import GRACE_S
from deployments.observe.tracing import tracing_problem
from deployments.settings import Settings, parse_settings
from deployments.startup.application_checks import check_application
from deployments.startup.checks import check_folders, check_machine, machine_notes
from deployments.startup.config_file import (
    DEFAULT_PORT,
    application_of,
    args_of,
    http_address,
    is_port,
    key_problems,
    read_config,
    router_config,
    value_problems,
)
from deployments.startup.exposure import (
    OPEN_RAY_HELP,
    check_ray_auth,
    exposure_problems,
    key_file_problems,
)
from deployments.startup.shelf import check_shelf, uses_shelf
from deployments.strict_model import SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.preflight", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", type=Path)
    parser.add_argument("--no-machine", action="store_true", help="check the file only")
    parser.add_argument("--allow_open_ray", action="store_true", help=OPEN_RAY_HELP)
    args = parser.parse_args(argv)
    problems, notes = check_file(args.config), []
    if not args.no_machine:
        content, _ = read_config(args.config)
        problems += check_machine(*http_address(content)) + _check_state(content)
        problems += check_ray_auth(args.allow_open_ray) + _check_hub(content, problems)
        problems += filter(None, [tracing_problem(os.environ)])
        notes = machine_notes()
        found, missing = _check_shelf(content)
        problems, notes = problems + found, notes + missing
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        lines = "\n".join(f"  - {problem}" for problem in problems)
        print(f"preflight: {len(problems)} {noun} with {args.config}:\n{lines}", file=sys.stderr)
        return 2
    print(f"preflight: {args.config} is fine" + (f" ({'; '.join(notes)})" if notes else ""))
    return 0


def check_file(path: Path) -> list[str]:
    """Return every problem of the file: Ray's sections, `args`, and each `user_config`."""
    content, problems = read_config(path)
    if problems:
        return problems
    problems = [*key_problems(content), *value_problems(content), *_check_http(content)]
    applications = content.get("applications")
    if not isinstance(applications, list) or len(applications) != 1:
        return [*problems, "applications: exactly one application is expected"]
    problems += check_application(application_of(content))
    settings = _settings_of(content)
    if settings is not None:
        found = exposure_problems(http_address(content)[0], settings)
        problems += [f"args.{problem}" for problem in found]
    return problems


def _check_state(content: Mapping[str, Any]) -> list[str]:
    """Return the problems of this machine's folders and key file, if `args` are right."""
    settings = _settings_of(content)
    if settings is None:
        return []
    return [f"args.{problem}" for problem in key_file_problems(settings)] + check_folders(settings)


def _check_shelf(content: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return problems, and notes, of the shelf that answers are to stand on."""
    settings = _settings_of(content)
    if settings is None or not uses_shelf(content):
        return [], []
    return check_shelf(settings.shelf_place)


def _check_hub(content: Mapping[str, Any], problems: Sequence[str]) -> list[str]:
    """Return a problem if nobody has the base model; not asked while other things are wrong."""
    from adapters.bases.check import find_base_model
    from adapters.bases.models import BaseModelError

    settings = _settings_of(content)
    if settings is None or problems:
        return []
    try:
        find_base_model(settings.base_model_or_dir)
    except BaseModelError as error:
        return [f"args.{error}"]
    return []


def _settings_of(content: Mapping[str, Any]) -> Settings | None:
    """Return None if `args` are wrong, which another check reports."""
    try:
        return parse_settings(args_of(content))
    except SettingsError:
        return None


def _check_http(content: Mapping[str, Any]) -> list[str]:
    """Return what Ray accepts although nobody could reach the service then."""
    problems = []
    options = content.get("http_options")
    port = options.get("port", DEFAULT_PORT) if isinstance(options, Mapping) else DEFAULT_PORT
    if not is_port(port):
        problems.append(f"http_options.port: a number from 1 to 65535 is expected (got {port!r})")
    if content.get("proxy_location") == "Disabled":
        problems.append(
            "proxy_location: 'Disabled' starts no HTTP server: use EveryNode, or HeadOnly"
        )
    return problems + _check_deadline(content)


def _check_deadline(content: Mapping[str, Any]) -> list[str]:
    """Return a problem if Ray's server would cut answers off before the Router ends them."""
    options = content.get("http_options")
    limit_s = options.get("request_timeout_s") if isinstance(options, Mapping) else None
    given = router_config(content).get("max_timeout_s", RouterLiveSettings().max_timeout_s)
    are_numbers = isinstance(limit_s, int | float) and isinstance(given, int | float)
    if not are_numbers or given + GRACE_S < limit_s:
        return []
    return [
        f"http_options.request_timeout_s: {limit_s} s ends requests before the Router's "
        f"max_timeout_s of {given} s (and {GRACE_S:g} s of grace) does: raise it, or lower "
        "max_timeout_s in the Router's user_config"
    ]


if __name__ == "__main__":
    raise SystemExit(main())
