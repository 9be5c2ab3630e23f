"""A process tree keeps what it saw, and finds what it did not see in the root's session."""

import subprocess
import sys
import textwrap
import time

import pytest

from deployments.startup.processes import ProcessTree

SLEEP = 'sleep = [sys.executable, "-c", "import time; time.sleep(60)"]'


def started(code: str, *, session: bool = False) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys, time\n{SLEEP}\n{textwrap.dedent(code)}"],
        start_new_session=session,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_it_remembers_orphans() -> None:
    parent = started("subprocess.Popen(sleep, start_new_session=True); time.sleep(60)")
    tree = ProcessTree(parent.pid)
    deadline = time.monotonic() + 10
    while len(tree.alive()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert len(tree.alive()) == 1
    assert tree.kill() == 1
    assert tree.alive() == []


@pytest.mark.slow
def test_an_orphan_that_was_never_seen_is_found_by_its_session() -> None:
    parent = started("print(subprocess.Popen(sleep).pid, flush=True)", session=True)
    tree = ProcessTree(parent.pid)
    assert parent.stdout is not None
    orphan = int(parent.stdout.readline())
    parent.wait()
    assert tree.alive() == [orphan]
    assert tree.kill() == 1
    assert tree.alive() == []


@pytest.mark.parametrize("session", [False, True])
def test_strangers_are_left_alone(session: bool) -> None:
    stranger = started("time.sleep(60)", session=True)
    parent = started("time.sleep(60)", session=session)
    try:
        tree = ProcessTree(parent.pid)
        assert tree.alive() == [parent.pid]
        assert tree.kill() == 1
        parent.wait()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
