"""Run Serve as a child process: wait until it is ready, watch it, end all that it started."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from deployments.settings import PROJECT_ROOT
from deployments.startup.cluster import serve_environment
from deployments.startup.processes import ProcessTree
from deployments.startup.status import (
    Addresses,
    application_states,
    describe_states,
    failure,
    readiness,
    welcome,
)
from deployments.startup.stop_signals import Interrupted, StopSignals
from deployments.startup.watch import Loss, Patience, ServiceWatch
from deployments.stopped import STOPPED_S, StoppedProcesses

POLL_S = 0.7
# Titles of what Serve and Ray replace when it has ended. A daemon that is stopped is killed too:
# nobody replaces it, and the service is given up for it.
_REPLACED = ("ray::ServeReplica", "ray::ProxyActor", "ray::ServeController")
GRACE_S = 8.0  # for Serve's own shutdown after Ctrl-C, before what is left is ended
ORPHANS_GRACE_S = 2.0  # of these, for daemons to follow the process that started them

Say = Callable[[str], None]
_PATIENCE = Patience()


def supervise(
    command: Sequence[str],
    addresses: Addresses,
    *,
    timeout_s: float,
    grace_s: float = GRACE_S,
    drain_s: Callable[[], float] = lambda: 0.0,
    patience: Patience = _PATIENCE,
    say: Say = lambda text: print(text, flush=True),
) -> int:
    """Run `command` until it ends, fails, or a signal stops us; return the exit status.

    Everything that it started is gone on return.

    Args:
        drain_s: how long answers in progress may take to finish when it is to stop.
        patience: with a service that was ready and does not answer any more.
    """
    started = time.monotonic()
    signals = StopSignals()
    # A new session: a Ctrl-C in the terminal reaches us alone, and we pass it on once. The mask:
    # Ray's token and its session folder are for this user.
    child = subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        env=serve_environment(os.environ),
        start_new_session=True,
        umask=0o077,
    )
    tree = ProcessTree(child.pid)
    cause, can_drain = None, False
    try:
        with signals:
            say(f"launch: started, pid {os.getpid()}")
            cause = _wait_until_ready(child, addresses, tree, started + timeout_s)
            if cause is None:
                can_drain = True
                report = readiness(addresses) or {}
                say(welcome(addresses, report, time.monotonic() - started))
                watch = ServiceWatch.of(addresses, tree, patience)
                loss = _wait_until_it_ends(child, tree, watch, say)
                cause, can_drain = loss.cause, loss.can_drain
                say(f"launch: {cause}; stopping")
    except Interrupted:
        say("launch: stopping" + (_DRAINING if can_drain and drain_s() else ""))
    finally:
        _stop(child, tree, signals, grace_s + (drain_s() if can_drain else 0.0), say)
    if cause is None:
        return 0
    say(f"launch: {cause}")  # after Ray's last output, so that the operator sees it
    return 1


_DRAINING = ": answers in progress are finished first; a second signal ends them at once"


def _wait_until_ready(
    child: subprocess.Popen[bytes], addresses: Addresses, tree: ProcessTree, deadline: float
) -> str | None:
    """Return the cause if it failed, or None once it is ready."""
    applications = {}
    while time.monotonic() < deadline:
        tree.refresh()
        if child.poll() is not None:
            code = child.returncode
            return f"not ready: serve ended with exit code {code}; its last output is above"
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


def _wait_until_it_ends(
    child: subprocess.Popen[bytes], tree: ProcessTree, watch: ServiceWatch, say: Say
) -> Loss:
    stopped = StoppedProcesses()
    while child.poll() is None:
        for process in stopped.end([*tree.titled(_REPLACED), *watch.daemons]):
            say(f"launch: pid {process.pid} was stopped for {STOPPED_S:g} s and is killed")
        loss = watch.look()
        if loss is not None:
            return loss
        time.sleep(POLL_S)
    return Loss(f"serve ended unasked (exit code {child.returncode})", can_drain=False)


def _stop(
    child: subprocess.Popen[bytes],
    tree: ProcessTree,
    signals: StopSignals,
    grace_s: float,
    say: Say,
) -> None:
    """Send one SIGINT, wait `grace_s` at most, then kill what is left of what we started.

    A second signal to us kills at once.
    """
    deadline = time.monotonic() + grace_s
    tree.refresh()
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        while child.poll() is None and time.monotonic() < deadline and not signals.is_urgent:
            tree.refresh()
            time.sleep(0.1)
    deadline = min(deadline, time.monotonic() + ORPHANS_GRACE_S)
    while tree.alive() and time.monotonic() < deadline and not signals.is_urgent:
        time.sleep(0.1)
    num_killed = tree.kill()
    child.wait()
    if num_killed:
        say(f"launch: ended {num_killed} process(es) that did not stop by themselves")
