"""`make serve`: preflight, base model, `serve run`, and an eye on it until it is ready.

    python -m deployments.launch serve_config.yaml

Exits with 2 when the preflight finds a problem, 1 when the deploy fails or Serve ends by itself,
and 0 after Ctrl-C or SIGTERM. Everything that it started is gone when it returns.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from deployments.preflight import DASHBOARD_PORT, http_address
from deployments.preflight import main as preflight
from deployments.process_tree import ProcessTree
from deployments.serve_schema import read_config
from deployments.settings import PROJECT_ROOT, parse_settings

POLL_S = 0.7
GRACE_S = 8.0  # for Serve's own shutdown after Ctrl-C, before what is left is ended
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


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the application answers, and where Ray's dashboard says how it is."""

    app: str
    dashboard: str = f"http://127.0.0.1:{DASHBOARD_PORT}"


class Interrupted(Exception):
    """Ctrl-C or SIGTERM."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.launch", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("config", type=Path)
    parser.add_argument("--timeout_s", type=float, default=900, help="until it must be ready")
    args = parser.parse_args(argv)
    config = args.config.resolve()
    if preflight([str(config)]):
        return 2
    if not _fetch_base_model(config):
        return 2
    host, port = http_address(read_config(config)[0])
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config), "-a", "local"]
    return supervise(command, Addresses(f"http://{host}:{port}"), timeout_s=args.timeout_s)


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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    # A session of its own: a Ctrl-C in the terminal reaches us alone, and we pass it on once.
    child = subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=_environment(os.environ), start_new_session=True
    )
    tree = ProcessTree(child.pid)
    say(f"launch: started, pid {os.getpid()}")
    try:
        cause = _wait_until_ready(child, addresses, tree, started + timeout_s)
        if cause is None:
            say(_welcome(addresses.app, time.monotonic() - started))
            cause = _wait_until_it_ends(child, tree)
    except Interrupted:
        say("launch: stopping")
        cause = None
    finally:
        _stop(child, tree, grace_s, say)
    if cause is None:
        return 0
    say(f"launch: {cause}")  # after Ray's last words, so that it is what an operator sees
    return 1


def _wait_until_it_ends(child: subprocess.Popen[bytes], tree: ProcessTree) -> str:
    while child.poll() is None:
        tree.refresh()
        time.sleep(POLL_S)
    return f"serve ended by itself (exit code {child.returncode})"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    environment = {**ENVIRONMENT, **inherited}
    paths = [str(PROJECT_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _wait_until_ready(
    child: subprocess.Popen[bytes], addresses: Addresses, tree: ProcessTree, deadline: float
) -> str | None:
    """None when ready, else the cause."""
    while time.monotonic() < deadline:
        tree.refresh()
        if child.poll() is not None:
            code = child.returncode
            return f"not ready: serve ended with exit code {code}; its last words are above"
        # The proxy holds a request until the application is there, so it is asked last.
        applications = _applications(_get(f"{addresses.dashboard}/api/serve/applications/"))
        failure = _failure(applications)
        if failure:
            return failure
        states = {application.get("status") for application in applications.values()}
        if states == {"RUNNING"} and _get(f"{addresses.app}/readyz") is not None:
            return None
        time.sleep(POLL_S)
    return "not ready: the time limit (--timeout_s) has passed"


def _applications(details: Any) -> dict[str, Any]:
    """Ray's answer -> name -> state of each application; empty while Serve is not up."""
    found = details.get("applications") if isinstance(details, dict) else None
    return found if isinstance(found, dict) else {}


def _failure(applications: Mapping[str, Any]) -> str | None:
    """The cause, when Ray's dashboard reports an application that cannot be deployed."""
    for name, application in applications.items():
        if application.get("status") not in ("DEPLOY_FAILED", "UNHEALTHY"):
            continue
        messages = [application.get("message", "")]
        messages += [d.get("message", "") for d in application.get("deployments", {}).values()]
        texts = list(dict.fromkeys(essence(message) for message in messages if message))
        return f"not ready: application {name}: {application['status']}\n" + "\n".join(texts)
    return None


def essence(message: str) -> str:
    """What an operator needs of Ray's message: the exception, without the traceback.

    A traceback ends in `Type: text`, where the text may go on over several lines (our errors list
    their problems that way).
    """
    lines = message.strip().splitlines()
    frames = [at for at, line in enumerate(lines) if line.lstrip().startswith('File "')]
    if not frames:
        return message.strip()
    last = frames[-1] + 1
    while last < len(lines) and lines[last].startswith((" " * 4, "\t")):
        last += 1
    return "\n".join(lines[last:]).strip() or message.strip()


def _get(url: str) -> Any:
    """JSON of a 200 answer, else None."""
    request = urllib.request.Request(url)
    token = Path.home() / ".ray" / "auth_token"
    if url.startswith("http://127.0.0.1") and f":{DASHBOARD_PORT}/" in url and token.is_file():
        request.add_header("Authorization", f"Bearer {token.read_text().strip()}")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)
    except (urllib.error.URLError, OSError, ValueError):
        return None


def _welcome(url: str, seconds: float) -> str:
    report = _get(f"{url}/readyz") or {}
    adapters = ", ".join(a["name"] for a in report.get("adapters", [])) or "none"
    ask = f"curl -s {url}/ask -H 'content-type: application/json' -d"
    return "\n".join(
        [
            f"launch: ready after {seconds:.0f} s at {url}  (Ctrl-C stops it)",
            f"  base model {report.get('base_model')} on {report.get('device')}, "
            f"{report.get('dtype')}; adapters: {adapters}",
            f"""  {ask} '{{"question": "What is eczema?"}}'""",
            f"""  {ask} '{{"question": "What are the first signs of Parkinson disease?"}}'""",
            f"  curl -s {url}/readyz",
        ]
    )


def _stop(
    child: subprocess.Popen[bytes],
    tree: ProcessTree,
    grace_s: float,
    say: Callable[[str], None],
) -> None:
    """One SIGINT, `grace_s` to end well, then SIGKILL for what is left of what we started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # once is enough
    tree.refresh()
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        deadline = time.monotonic() + grace_s
        while child.poll() is None and time.monotonic() < deadline:
            tree.refresh()
            time.sleep(0.1)
    num_killed = tree.kill()
    child.wait()
    if num_killed:
        say(f"launch: ended {num_killed} process(es) that did not stop by themselves")


if __name__ == "__main__":
    raise SystemExit(main())
