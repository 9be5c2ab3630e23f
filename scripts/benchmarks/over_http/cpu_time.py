"""How many processor seconds the processes of a private Serve and its clients take, by role."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

import psutil

# What a process is, by the first of these that its command line matches.
_ROLES = (
    ("engine process", r"deployments\.engine_process"),
    ("model replica", r"ServeReplica:.*:Model"),
    ("router replica", r"ServeReplica:.*:Router"),
    ("HTTP proxy", r"ProxyActor|haproxy"),
    ("Serve controller", r"ServeController"),
    ("serve run", r"deployments\.startup\.cluster"),
    ("raylet", r"raylet/raylet"),
    ("GCS", r"gcs_server"),
    ("dashboard agent", r"dashboard/agent\.py|DashboardAgent"),
    ("runtime env agent", r"runtime_env/agent|RuntimeEnvAgent"),
    ("dashboard", r"dashboard/dashboard\.py|dashboard"),
    ("log monitor", r"log_monitor"),
    ("idle worker", r"ray::IDLE|default_worker"),
    ("client", r"multiprocessing.spawn"),
)
OTHER = "other"


def role_of(command: str) -> str:
    """Return what a process with this command line is, OTHER if that is not known."""
    return next((role for role, pattern in _ROLES if re.search(pattern, command)), OTHER)


def seconds_by_role(pids: Iterable[int]) -> dict[str, float]:
    """Return the processor seconds that each role has taken so far, of these processes and of all
    that this process has started."""
    own = (child.pid for child in psutil.Process().children(recursive=True))
    found: dict[str, float] = defaultdict(float)
    for pid in {*pids, *own}:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                times, command = process.cpu_times(), " ".join(process.cmdline())
        except psutil.Error:  # it has ended
            continue
        found[role_of(command)] += times.user + times.system
    return found


def spent(before: Mapping[str, float], after: Mapping[str, float], per: float) -> dict[str, float]:
    """Return what each role took between two looks, divided by `per`, the largest first."""
    taken = {role: round((after[role] - before.get(role, 0.0)) / per, 4) for role in after}
    ordered = sorted(taken.items(), key=lambda item: -item[1])
    return {role: value for role, value in ordered if value}
