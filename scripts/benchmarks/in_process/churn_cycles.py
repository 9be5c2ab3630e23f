"""Update a version and roll it back under load, for `scripts.benchmark churn`."""

import argparse
import asyncio
import statistics
import time
from typing import Any

import psutil

from scripts.benchmarks.in_process.churn_replica import Asked, ChurnReplica, Make


def cycles(args: argparse.Namespace, make: Make) -> dict[str, Any]:
    return asyncio.run(_cycles_async(args, make(args.slots)))


async def _cycles_async(args: argparse.Namespace, replica: ChurnReplica) -> dict[str, Any]:
    """Compare every answer with those of both versions, made one at a time before."""
    await asyncio.to_thread(replica.add_version, "a0", "2")
    # The second adapter's weights, so that its answers differ.
    await asyncio.to_thread(replica.add_version, "a0", "3", weights_of="a1")
    prompt = replica.prompt(args.prompt_tokens)
    answers = {v: (await replica.ask("a0", v, prompt, 8)).text for v in ("1", "3")}
    assert answers["1"] != answers["3"], "the versions do not differ: nothing would be tested"
    counts = dict.fromkeys(("right", "wrong_version", "other_text", "failed"), 0)
    stop, version = asyncio.Event(), ["3"]

    async def ask_repeatedly() -> None:
        while not stop.is_set():
            mine = version[0]
            asked = await replica.ask("a0", mine, prompt, 8)
            other = answers["1" if mine == "3" else "3"]
            counts[_kind_of(asked, answers[mine], other)] += 1

    running = [asyncio.create_task(ask_repeatedly()) for _ in range(max(1, args.rows // 2))]
    samples, started = [], time.perf_counter()
    for cycle in range(args.cycles + 1):
        if cycle % max(1, args.cycles // 20) == 0:
            samples.append((cycle, _rss_mib()))
        for wanted in ("1", "3"):  # the roll-back, and the update again
            await asyncio.to_thread(replica.switch, "a0", wanted)
            version[0] = wanted
    stop.set()
    await asyncio.gather(*running)
    replica.close()
    late = [s for s in samples if s[0] >= args.cycles // 5]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope * 100
    return {
        "cycles": args.cycles,
        "seconds": round(time.perf_counter() - started, 1),
        **counts,
        "growth_mib_per_100": round(slope, 3),
        "rss_mib": [(cycle, round(mib, 2)) for cycle, mib in samples],
    }


def _kind_of(asked: Asked, wanted: str, other: str) -> str:
    if asked.failed:
        return "failed"
    if asked.text == wanted:
        return "right"
    return "wrong_version" if asked.text == other else "other_text"


def _rss_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20
