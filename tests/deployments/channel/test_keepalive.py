"""A connection whose other end vanishes without a word is lost within seconds, on both sides."""

import shutil
import subprocess
import sys

import pytest

from tests.test_layout import ROOT

# Where the loopback interface is taken down, packets go nowhere, as those of a machine that has
# lost its power. The answer has begun; then the sender says one word more, or nothing.
VANISHING = """
import asyncio, subprocess, sys, time
import uvloop
from deployments.channel import keepalive
from deployments.channel.receiver import EventReceiver
from deployments.channel.sender import EventSender
from deployments.engine.request import Timings, TokenEvent

keepalive.IDLE_S = keepalive.INTERVAL_S = keepalive.NUM_PROBES = keepalive.UNACKNOWLEDGED_S = 1

def event(text):
    return TokenEvent("r", text, 1, 3, Timings())

async def main(speaks):
    receiver = EventReceiver("127.0.0.1")
    stream = receiver.open("r")
    connection = await EventSender().connect(await receiver.address())
    connection.send(stream.stream_id, event("a"))
    assert (await stream.get()).text == "a"
    subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
    started = time.monotonic()
    if speaks:
        connection.send(stream.stream_id, event("b"))
    lost = await asyncio.wait_for(stream.get(), 15)
    while not connection.is_lost:
        assert time.monotonic() - started < 15
        await asyncio.sleep(0.05)
    print(lost.error.code, lost.text)

run = uvloop.run if sys.argv[1] == "uvloop" else asyncio.run
run(main(sys.argv[2] == "speaks"))
"""


def _alone(*command: str) -> list[str]:
    """Run a command in a network of its own."""
    inside = 'ip link set lo up && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", inside, "sh", *command]


def _can_be_alone() -> bool:
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "ip"))):
        return False
    return subprocess.run(_alone("true"), capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not _can_be_alone(), reason="needs a network namespace of its own")
@pytest.mark.parametrize("speaks", ["speaks", "is idle"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_machine_that_is_gone_ends_its_connection(loop: str, speaks: str) -> None:
    command = _alone(sys.executable, "-c", VANISHING, loop, speaks)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["replica_lost"], done.stderr[-1000:]
