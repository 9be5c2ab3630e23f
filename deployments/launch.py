"""Start the service (`make serve`), or give a running one the settings of a changed file.

    python -m deployments.launch serve_config.yaml
    python -m deployments.launch --apply serve_config.yaml     # `user_config` takes effect in place
    python -m deployments.launch --stop serve_config.yaml      # of several machines: drain and end

The first checks the file and the machine, fetches the base model, builds the reference shelf where
answers stand on it, runs Serve and watches it. Its exit status: 2 if the preflight finds a problem,
another launcher has the port, or there is no base model or no shelf; 1 if the deploy fails or
takes longer than `--timeout_s`, Serve or one of Ray's daemons ends unasked, or the service does not
answer any more (`--unanswered_s`, `--unready_s`), so that a supervisor starts it again; 0 after
Ctrl-C, SIGTERM or a closed terminal (130 if Serve was not yet started). Such a signal lets answers
in progress finish, within `drain_s` of the Router's user_config; a second one does not wait.
Everything that it started is gone when it returns.

`--apply` checks the file and sends it to the running Serve with Ray's token, which plain `serve
deploy` does not have. Its exit status: 0 once the application runs with it, else 2 or 1.

`--stop` is for a Serve on machines where `ray start` runs Ray, and no launcher could be signalled:
answers in progress finish, as above, then Serve is shut down. Its exit status: 0, or 1 if there is
nothing to stop.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployments.preflight import main as preflight
from deployments.settings import parse_settings
from deployments.startup.cluster import ENVIRONMENT, claimed, free_port, serve_command
from deployments.startup.config_file import (
    application_of,
    args_of,
    drain_s,
    http_address,
    read_config,
)
from deployments.startup.draining import Drain, StopError, drain_and_shut_down
from deployments.startup.exposure import OPEN_RAY_HELP
from deployments.startup.live_settings import ApplyError, apply_config
from deployments.startup.shelf import uses_shelf
from deployments.startup.status import DASHBOARD, DASHBOARD_PORT, METRICS_PORT, addresses_of
from deployments.startup.supervision import supervise
from deployments.startup.watch import Patience


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.launch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", type=Path)
    parser.add_argument("--timeout_s", type=float, default=900, help="until it must be ready")
    patience = Patience()
    parser.add_argument(
        "--unanswered_s",
        type=float,
        default=patience.unanswered_s,
        help="/readyz without any answer, until all is ended (default: %(default)g)",
    )
    parser.add_argument(
        "--unready_s",
        type=float,
        default=patience.unready_s,
        help="/readyz answers that it is not ready, until all is ended (default: %(default)g)",
    )
    parser.add_argument("--allow_open_ray", action="store_true", help=OPEN_RAY_HELP)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--apply", action="store_true", help="to the service that runs already")
    what.add_argument("--stop", action="store_true", help="the service on machines of `ray start`")
    parser.add_argument("--dashboard", help=f"of the running service; default: {DASHBOARD}")
    args = parser.parse_args(argv)
    if args.dashboard and not args.apply:
        parser.error("--dashboard: only with --apply; a new service chooses its port itself")
    config = args.config.resolve()
    if args.stop:
        return _stop(config)
    return _apply(config, args) if args.apply else _start(config, args)


def _start(config: Path, args: argparse.Namespace) -> int:
    try:
        allowed = ["--allow_open_ray"] if args.allow_open_ray else []
        if preflight([*allowed, str(config)]):
            return 2
        content, _ = read_config(config)
        http_port = http_address(content)[1]
        with claimed(http_port) as is_ours:
            if is_ours:
                if not (_fetch_base_model(content) and _build_shelf(content)):
                    return 2
                return _supervised(config, content, args)
    except KeyboardInterrupt:
        print("launch: stopped before Serve was started", file=sys.stderr)
        return 130
    print(
        f"launch: http_options.port: {http_port} is another launcher's, whose clinic may still be "
        "starting: choose another port, or end that one",
        file=sys.stderr,
    )
    return 2


def _supervised(config: Path, content: dict[str, Any], args: argparse.Namespace) -> int:
    port = free_port(DASHBOARD_PORT)
    metrics_port = free_port(METRICS_PORT)
    addresses = addresses_of(content, f"http://127.0.0.1:{port}")
    elsewhere = "" if port == DASHBOARD_PORT else f" --dashboard {addresses.dashboard}"
    print(f"launch: metrics: http://127.0.0.1:{metrics_port}/metrics", flush=True)
    print(
        "launch: to apply a later change of the file: "
        f"python -m deployments.launch --apply {config}{elsewhere}",
        flush=True,
    )
    return supervise(
        serve_command(config, port, metrics_port),
        addresses,
        timeout_s=args.timeout_s,
        drain_s=lambda: drain_s(config),
        patience=Patience(args.unanswered_s, args.unready_s),
    )


def _fetch_base_model(content: dict[str, Any]) -> bool:
    """Download the base model here rather than in the replica, so that its progress is seen."""
    from adapters.bases.check import check_folder
    from adapters.bases.models import BaseModelError, resolve_base_model

    settings = parse_settings(args_of(content))
    try:
        check_folder(resolve_base_model(settings.base_model_or_dir).path)
    except BaseModelError as error:
        print(f"launch: {error}", file=sys.stderr)
        return False
    return True


def _build_shelf(content: dict[str, Any]) -> bool:
    """Build the default shelf where answers are to stand on it: router replicas only open it."""
    from references.default_shelf import ensure_shelf
    from references.passage import ReferencesError

    settings = parse_settings(args_of(content))
    if settings.shelf_place is not None or not uses_shelf(content):
        return True
    try:
        ensure_shelf()
    except ReferencesError as error:
        print(f"launch: the reference shelf: {error}", file=sys.stderr)
        return False
    return True


def _apply(config: Path, args: argparse.Namespace) -> int:
    if preflight(["--no-machine", str(config)]):
        return 2
    content, _ = read_config(config)
    # A Serve elsewhere has its own disks; its builder looks at the base before it replaces it.
    is_here = args.dashboard is None
    if is_here and not (_fetch_base_model(content) and _build_shelf(content)):
        return 2
    addresses = addresses_of(content, args.dashboard or DASHBOARD)
    try:
        apply_config(content, addresses, timeout_s=args.timeout_s)
    except ApplyError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 1
    print(f"launch: {addresses.app} runs with {config}")
    return 0


def _stop(config: Path) -> int:
    content, problems = read_config(config)
    if problems:
        print(f"launch: {'; '.join(problems)}", file=sys.stderr)
        return 2
    os.environ.setdefault("RAY_AUTH_MODE", ENVIRONMENT["RAY_AUTH_MODE"])
    application = str(application_of(content).get("name", "default"))
    try:
        drain_and_shut_down(Drain(application, lambda: drain_s(config)), application)
    except StopError as error:
        print(f"launch: {error}", file=sys.stderr)
        return 1
    print("launch: Serve has ended: now end Ray on each machine")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
