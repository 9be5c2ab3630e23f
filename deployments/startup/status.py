"""Ask over HTTP how an application on Ray Serve is: the dashboard's report and `/readyz`."""

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.startup.checks import connectable
from deployments.startup.config_file import http_address

DASHBOARD_PORT = 8265  # Ray's default
METRICS_PORT = 9464  # which deploy/prometheus/targets/local.yml names
DASHBOARD = f"http://127.0.0.1:{DASHBOARD_PORT}"
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


@dataclass(frozen=True, slots=True)
class Addresses:
    """URLs: where the application answers, and where Ray's dashboard reports on it."""

    app: str
    dashboard: str = DASHBOARD

    @property
    def applications(self) -> str:
        """Where the dashboard lists the applications, and takes a new configuration."""
        return f"{self.dashboard}/api/serve/applications/"


def addresses_of(content: Mapping[str, Any], dashboard: str = DASHBOARD) -> Addresses:
    """Return the addresses of a serve_config.yaml that has passed the preflight."""
    host, port = http_address(content)
    host = connectable(host)
    scheme = "https" if (content.get("http_options") or {}).get("ssl_certfile") else "http"
    prefix = str(content["applications"][0].get("route_prefix", "/")).rstrip("/")
    app = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{prefix}"
    return Addresses(app, dashboard.rstrip("/"))


def application_states(addresses: Addresses) -> dict[str, Any]:
    """Return name -> state of each application; empty while Serve is not up."""
    details = get_json(addresses.applications, token=auth_token())
    found = details.get("applications") if isinstance(details, dict) else None
    return found if isinstance(found, dict) else {}


def readiness(addresses: Addresses) -> dict[str, Any] | None:
    """Return what `/readyz` answers with a 200, or None before that."""
    answer = get_json(f"{addresses.app}/readyz")
    return answer if isinstance(answer, dict) else None


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of one GET /readyz.

    is_ours: the application itself has answered, ready or not. cause: what was wrong, if anything.
    """

    is_ours: bool
    is_ready: bool
    cause: str = ""


def probe_readiness(addresses: Addresses, *, timeout_s: float = 5) -> Probe:
    """Ask /readyz once. Another status than 200 and 503, or another body, is the proxy's."""
    request = urllib.request.Request(f"{addresses.app}/readyz")
    try:
        with open_url(request, token=None, timeout_s=timeout_s) as response:
            return Probe(isinstance(json.load(response), dict), is_ready=True)
    except urllib.error.HTTPError as error:
        with error:
            return _refused(error)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Probe(False, False, str(error) or type(error).__name__)


def _refused(error: urllib.error.HTTPError) -> Probe:
    try:
        found = json.load(error)
    except (OSError, ValueError, http.client.HTTPException):
        found = None
    if isinstance(found, dict) and found.get("status") == "not_ready":
        return Probe(True, False, str(found.get("cause")))
    return Probe(False, False, f"status {error.code}")


def failure(applications: Mapping[str, Any]) -> str | None:
    """Return the cause if the dashboard reports an application that cannot be deployed."""
    failed = {n: a for n, a in applications.items() if a.get("status") in FAILED}
    return describe_states(failed) if failed else None


def describe_states(applications: Mapping[str, Any]) -> str:
    """Return status and messages of each application and its deployments, without tracebacks."""
    lines = []
    for name, application in applications.items():
        lines.append(f"application {name}: {application.get('status')}")
        lines += dict.fromkeys(essence(message) for message in _messages(application))
    return "\n".join(lines) or "Ray Serve has not reported an application"


def _messages(application: Mapping[str, Any]) -> Iterator[str]:
    deployments = (application.get("deployments") or {}).values()
    for state in (application, *deployments):
        if state.get("message"):
            yield str(state["message"])


def essence(message: str) -> str:
    """Return the exception in Ray's message, without the traceback.

    A traceback ends in `Type: text`, where the text may have several lines (our errors list their
    problems that way).
    """
    lines = message.strip().splitlines()
    frames = [at for at, line in enumerate(lines) if line.lstrip().startswith('File "')]
    if not frames:
        return message.strip()
    last = frames[-1] + 1
    while last < len(lines) and lines[last].startswith((" " * 4, "\t")):
        last += 1
    return "\n".join(lines[last:]).strip() or message.strip()


def welcome(addresses: Addresses, report: Mapping[str, Any], seconds: float) -> str:
    """Return what an operator reads at the start: the address, what is served, examples."""
    url = addresses.app
    held = [a.get("name") if isinstance(a, dict) else a for a in report.get("adapters") or []]
    known = [f"{key} {report[key]}" for key in ("base_model", "device", "dtype") if key in report]
    facts = [*known, f"adapters: {', '.join(map(str, held)) or 'none'}"]
    curl = f"curl -s{'k' if url.startswith('https') else ''}"
    ask = f"{curl} {url}/ask -H 'content-type: application/json' -d"
    return "\n".join(
        [
            f"launch: ready after {seconds:.0f} s at {url}  (Ctrl-C stops it)",
            f"  {'; '.join(facts)}",
            f"""  {ask} '{{"question": "What is eczema?"}}'""",
            f"""  {ask} '{{"question": "What are the first signs of Parkinson disease?"}}'""",
            f"  {curl} {url}/readyz",
        ]
    )


def get_json(url: str, *, token: str | None = None, timeout_s: float = 5) -> Any:
    """Return the JSON of a 200 answer, else None."""
    try:
        with open_url(urllib.request.Request(url), token=token, timeout_s=timeout_s) as response:
            return json.load(response)
    except (OSError, ValueError, http.client.HTTPException):
        return None


def open_url(request: urllib.request.Request, *, token: str | None, timeout_s: float) -> Any:
    """Send a request straight to a server of ours, whatever proxy is set.

    Raises:
        OSError, http.client.HTTPException: no answer, or another status than 2xx.
    """
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        # Our own server, on this machine: its certificate names another host.
        urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),
    )
    return opener.open(request, timeout=timeout_s)


def token_file() -> Path:
    """Return the file that holds Ray's token, by Ray's rules."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def auth_token() -> str | None:
    """Return Ray's token, in Ray's order: a variable, the file that one names, the home folder."""
    given = os.environ.get("RAY_AUTH_TOKEN")
    if given:
        return given.strip()
    try:
        return token_file().read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
