"""Sample what a long run holds: memory, file descriptors and threads by role, metric series."""

import asyncio
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import aiohttp
import psutil

from deployments.startup.processes import ProcessTree
from scripts.benchmarks.over_http.cpu_time import role_of

MAX_GROWTH = 0.02  # of memory, from the end of the warm-up to the end
HELD = ("pss_mib", "descriptors", "threads", "series")
WARM_UP_SHARE = 1 / 6  # of a run: the first ten minutes of an hour
_MIB = 2**20
Sample = dict[str, dict[str, float]]  # role -> what it holds; "all" has the sums, and `series`


async def sample_forever(
    session: aiohttp.ClientSession,
    metrics: str,
    tree: ProcessTree,
    every_s: float,
    found: list[tuple[float, Sample]],
) -> None:
    """Append (seconds since the start, what is held) to `found`, until cancelled.

    While a fault holds up Ray's metrics, there is no sample.

    Args:
        metrics: URL of Ray's metrics of this node.
    """
    started = time.monotonic()
    while True:
        held = await asyncio.to_thread(held_by_role, tree.alive())
        try:
            held["all"]["series"] = await num_series(session, metrics)
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            print(f"no sample: {metrics}: {type(error).__name__}", file=sys.stderr)
        else:
            found.append((time.monotonic() - started, held))
        await asyncio.sleep(every_s)


def held_by_role(pids: Iterable[int]) -> Sample:
    """Return what the processes of each role hold; a shared page counts by its share (PSS)."""
    found: Sample = defaultdict(lambda: dict.fromkeys(HELD[:3], 0.0))
    for pid in pids:
        try:
            process = psutil.Process(pid)
            held = (
                process.memory_full_info().pss / _MIB,
                process.num_fds(),
                process.num_threads(),
            )
            role = role_of(" ".join(process.cmdline()))
        except psutil.Error:  # it has ended
            continue
        for name, value in zip(HELD, held, strict=False):
            found[role][name] += value
            found["all"][name] += value
    return found


async def num_series(session: aiohttp.ClientSession, metrics: str) -> int:
    """Return how many series Prometheus would read there."""
    async with asyncio.timeout(10), session.get(metrics) as reply:
        reply.raise_for_status()
        lines = (await reply.text()).splitlines()
    return sum(not line.startswith("#") for line in lines)


def drift(samples: Sequence[tuple[float, Sample]], warm_up_s: float) -> dict[str, Any]:
    """Return how what is held changed: medians of the first and of the last tenth of the samples
    after the warm-up, by role, and all samples of the sums."""
    settled = [held for at_s, held in samples if at_s >= warm_up_s] or [samples[-1][1]]
    tenth = max(1, len(settled) // 10)
    parts = settled[:tenth], settled[-tenth:]
    roles = {
        role: {
            name: [
                round(statistics.median(held.get(role, {}).get(name, 0.0) for held in part), 1)
                for part in parts
            ]
            for name in values
        }
        for role, values in settled[-1].items()
    }
    first, last = roles["all"]["pss_mib"]
    every = {name: [round(held["all"][name], 1) for _, held in samples] for name in HELD}
    return {
        "warm_up_s": warm_up_s,
        "memory_growth": round(last / first - 1, 4),
        "from_to": roles,
        "all": every,
    }
