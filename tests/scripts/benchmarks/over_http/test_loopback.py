"""A command in a network namespace of its own has loopback, and nothing else."""

import os
import shutil
import subprocess
import sys

import pytest

from scripts.benchmarks.over_http.loopback import in_new_namespace, turn_on

CONNECTS = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname(), timeout=5).close()
print([name for _, name in socket.if_nameindex() if not name.endswith("0")])
"""


def may_unshare() -> bool:
    command = shutil.which("unshare")
    if os.geteuid() != 0 or command is None:
        return False
    return subprocess.run([command, "-n", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not may_unshare(), reason="needs root and unshare")
def test_loopback_and_nothing_else() -> None:
    command = in_new_namespace([sys.executable, "-c", CONNECTS])
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("['lo']\n", 0), done.stderr


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(OSError, match="No such device"):
        turn_on("none-such")
