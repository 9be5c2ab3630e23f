"""`make serve`: preflight, base model, `serve run`, and an eye on it until it is ready.

    python -m deployments.launch serve_config.yaml

Exits with 2 when the preflight finds a problem or the base model cannot be had, with 1 when the
deploy fails, takes longer than `--timeout_s`, or Serve ends by itself, and with 0 after Ctrl-C,
SIGTERM or a closed terminal (130 when Serve was not yet started). Everything that it started is
gone when it returns.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from deployments.preflight import main as preflight
from deployments.settings import PROJECT_ROOT, parse_settings
from deployments.startup.config_file import read_config
from deployments.startup.processes import ProcessTree
from deployments.startup.status import (
    Addresses,
    addresses_of,
    application_states,
    describe_states,
    failure,
    readiness,
    welcome,
)

POLL_S = 0.7
GRACE_S = 8.0  # for Serve's own shutdown after Ctrl-C, before what is left is ended
ORPHANS_GRACE_S = 2.0  # of these, for daemons to follow the process that started them
# Set only where the environment does not say otherwise.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Ray binds every interface otherwise, whatever address it is given.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    # glibc keeps an arena for each thread otherwise, and torch has many.
    "MALLOC_ARENA_MAX": "2",
}


class Interrupted(Exception):
    """Ctrl-C, SIGTERM, or the terminal was closed."""


class StopSignals:
    """Turns the first signal that asks us to stop into `Interrupted`, inside its `with` block only.

    A signal that comes before the block is kept for it; later ones change nothing, since stopping
    has begun. So no signal can hit between the start of a process and the note of its pid.
    """

    def __init__(self) -> None:
        self._asked = self._armed = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored: nohup wants it so
            signal.signal(signal.SIGHUP, self._handle)

    def __enter__(self) -> None:
        if self._asked:
            raise Interrupted
        self._armed = True

    def __exit__(self, *_: object) -> None:
        self._armed = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self._asked = not self._asked, True
        if first and self._armed:
            raise Interrupted


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.launch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", type=Path)
    parser.add_argument("--timeout_s", type=float, default=900, help="until it must be ready")
    args = parser.parse_args(argv)
    config = args.config.resolve()
    try:
        if preflight([str(config)]) or not _fetch_base_model(config):
            return 2
    except KeyboardInterrupt:
        print("launch: stopped before Serve was started", file=sys.stderr)
        return 130
    return supervise(
        serve_command(config), addresses_of(read_config(config)[0]), timeout_s=args.timeout_s
    )


def _fetch_base_model(config: Path) -> bool:
    """Here rather than in the replica, so that its progress is seen."""
    from adapters.base_models import BaseModelError, resolve_base_model

    args = read_config(config)[0]["applications"][0].get("args") or {}
    settings = parse_settings(args)
    try:
        resolve_base_model(settings.base_model_or_dir)
    except BaseModelError as error:
        print(f"launch: {error}", file=sys.stderr)
        return False
    return True


def supervise(
    command: Sequence[str],
    addresses: Addresses,
    *,
    timeout_s: float,
    grace_s: float = GRACE_S,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> int:
    """Run `command` until it ends, it fails to deploy, or somebody stops us; see the module."""
    started = time.monotonic()
    signals = StopSignals()
    # A session of its own: a Ctrl-C in the terminal reaches us alone, and we pass it on once.
    child = subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=serve_environment(os.environ), start_new_session=True
    )
    tree = ProcessTree(child.pid)
    cause = None
    try:
        with signals:
            say(f"launch: started, pid {os.getpid()}")
            cause = _wait_until_ready(child, addresses, tree, started + timeout_s)
            if cause is None:
                report = readiness(addresses) or {}
                say(welcome(addresses, report, time.monotonic() - started))
                cause = _wait_until_it_ends(child, tree)
    except Interrupted:
        say("launch: stopping")
    finally:
        _stop(child, tree, grace_s, say)
    if cause is None:
        return 0
    say(f"launch: {cause}")  # after Ray's last words, so that it is what an operator sees
    return 1


def serve_command(config: Path) -> list[str]:
    """Return the command that runs Serve; `local`: in a new cluster, never in a found one."""
    return [sys.executable, "-m", "ray.serve.scripts", "run", str(config), "-a", "local"]


def serve_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that Serve and Ray's own commands need; `inherited` has priority."""
    environment = {**ENVIRONMENT, **inherited}
    paths = [str(PROJECT_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _wait_until_ready(
    child: subprocess.Popen[bytes], addresses: Addresses, tree: ProcessTree, deadline: float
) -> str | None:
    """None when ready, else the cause."""
    applications = {}
    while time.monotonic() < deadline:
        tree.refresh()
        if child.poll() is not None:
            code = child.returncode
            return f"not ready: serve ended with exit code {code}; its last words are above"
        # The proxy holds a request until the application is there, so it is asked last.
        applications = application_states(addresses)
        failed = failure(applications)
        if failed:
            return f"not ready: {failed}"
        states = {application.get("status") for application in applications.values()}
        if states == {"RUNNING"} and readiness(addresses) is not None:
            return None
        time.sleep(POLL_S)
    return f"not ready within --timeout_s: {describe_states(applications)}"


def _wait_until_it_ends(child: subprocess.Popen[bytes], tree: ProcessTree) -> str:
    while child.poll() is None:
        tree.refresh()
        time.sleep(POLL_S)
    return f"serve ended by itself (exit code {child.returncode})"


def _stop(
    child: subprocess.Popen[bytes],
    tree: ProcessTree,
    grace_s: float,
    say: Callable[[str], None],
) -> None:
    """One SIGINT, `grace_s` to end well, then SIGKILL for what is left of what we started."""
    deadline = time.monotonic() + grace_s
    tree.refresh()
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        while child.poll() is None and time.monotonic() < deadline:
            tree.refresh()
            time.sleep(0.1)
    deadline = min(deadline, time.monotonic() + ORPHANS_GRACE_S)
    while tree.alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    num_killed = tree.kill()
    if child.poll() is None:  # only where /proc does not tell the tree
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if num_killed:
        say(f"launch: ended {num_killed} process(es) that did not stop by themselves")


if __name__ == "__main__":
    raise SystemExit(main())
