"""Time the parts of `scripts.benchmark churn` on a replica in this process."""

import argparse
import asyncio
import functools
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import torch

from deployments.model.adapter_registry import adapter_key
from scripts.benchmarks.bases.models import load_base
from scripts.benchmarks.command import settings_of, spread
from scripts.benchmarks.in_process.churn_cycles import cycles
from scripts.benchmarks.in_process.churn_replica import Asked, ChurnReplica, Make
from scripts.benchmarks.in_process.random_adapters import write_catalog
from scripts.benchmarks.over_http.streams import Window, per_token_ms
from scripts.environment import device_name

_LOADED = 12  # adapters of the load part; the first two warm up
_MAX_ANSWER_TOKENS = 200  # of the answers that run during adds


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    if args.threads:
        torch.set_num_threads(args.threads)
    base = load_base(args.model, args.device, args.dtype)
    size = write_catalog(
        base.model, scratch / "seed", num=args.registered, rank=args.rank, targets=args.targets
    )
    report: dict[str, Any] = {
        "settings": settings_of(args),
        "torch_threads": torch.get_num_threads(),
        "device": device_name(args.device),
        **size,
    }
    numbers = itertools.count()

    def make(slots: int) -> ChurnReplica:
        return ChurnReplica(
            load_base(args.model, args.device, args.dtype),  # a decoder takes its base's weights
            scratch / "seed",
            scratch / f"state{next(numbers)}",
            slots=slots,
            rows=args.rows,
            host_mib=args.host_mib,
        )

    for part in args.parts:
        started = time.perf_counter()
        report[part] = _PARTS[part](args, make)
        seconds = time.perf_counter() - started
        print(f"{part:<8} {seconds:.0f} s  {json.dumps(report[part])[:600]}", file=sys.stderr)
    return report


def _load(args: argparse.Namespace, make: Make) -> dict[str, Any]:
    """Time disk -> memory, memory -> device, and the first install with its probe, in ms."""
    replica = make(args.slots)
    adapters = replica.store.read().adapters[-_LOADED:]
    times: dict[str, list[float]] = {"read": [], "install_probed": [], "install": []}
    for position, adapter in enumerate(adapters):
        key = adapter_key(adapter.name, adapter.stable)
        started = time.perf_counter()
        weights = replica.decoder.read_adapter(replica.store.folder(adapter.stable))
        seconds = {"read": time.perf_counter() - started}
        for kind, probe in (("install_probed", True), ("install", False)):
            replica.free_slot()
            install = functools.partial(replica.decoder.install, key, weights, probe=probe)
            seconds[kind] = replica.timed_between_steps(install)
            replica.timed_between_steps(functools.partial(replica.decoder.evict, key))
        if position >= 2:
            for kind, value in seconds.items():
                times[kind].append(value * 1000)
    replica.close()
    return {f"{kind}_ms": spread(values) for kind, values in times.items()}


def _hot_add(args: argparse.Namespace, make: Make) -> dict[str, Any]:
    return asyncio.run(_hot_add_async(args, make(args.slots)))


async def _hot_add_async(args: argparse.Namespace, replica: ChurnReplica) -> dict[str, Any]:
    """Time new versions, and the others' tokens then and in pauses as long in between."""
    changing, *others = [a.name for a in replica.store.read().adapters[: args.slots - 1]]
    stop = asyncio.Event()
    prompt = replica.prompt(args.prompt_tokens)
    tokens: list[float] = []
    failures: list[str] = []

    async def ask_repeatedly(name: str) -> None:
        while not stop.is_set():
            async with aclosing(replica.answer(name, prompt, _MAX_ANSWER_TOKENS)) as events:
                async for event in events:
                    tokens.append(time.perf_counter())
                    failures.extend([event.error.code] if event.error else [])
                    if stop.is_set():
                        break

    running = [
        asyncio.create_task(ask_repeatedly(others[i % len(others)])) for i in range(args.rows - 1)
    ]
    await asyncio.sleep(3)
    # The first change of a catalogue copies the seed's files, which is not repeated.
    await asyncio.to_thread(replica.add_version, changing, "first")
    await asyncio.sleep(1)
    adding: list[Window] = []
    quiet: list[Window] = []
    for number in range(args.adds):
        started = time.perf_counter()
        await asyncio.to_thread(replica.add_version, changing, f"v{number}")
        adding.append((started, time.perf_counter()))
        await asyncio.sleep(max(1.0, adding[-1][1] - started))
        quiet.append((adding[-1][1], time.perf_counter()))
    stop.set()
    await asyncio.gather(*running)
    replica.close()
    rows = args.rows - 1
    added, calm = per_token_ms(tokens, adding, rows), per_token_ms(tokens, quiet, rows)
    return {
        "add_s": spread(stopped - started for started, stopped in adding),
        "others_ms_per_token": {"adding": round(added, 3), "quiet": round(calm, 3)},
        "rise": round(added / calm - 1, 3),
        "longest_gap_ms": round(max(b - a for a, b in itertools.pairwise(tokens)) * 1000, 1),
        "failed": len(failures),
    }


def _zipf(args: argparse.Namespace, make: Make) -> dict[str, Any]:
    sides = {}
    for side, slots in (("tiered", args.slots), ("all_resident", args.registered)):
        replica = make(slots)
        asked = asyncio.run(_zipf_async(args, replica))
        replica.close()
        del replica
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
        sides[side] = {
            "slots": slots,
            "hit_rate": round(sum(a.was_resident for a in asked) / len(asked), 4),
            "first_token_ms": spread(a.first_token_s * 1000 for a in asked),
            "failed": sum(a.failed for a in asked),
        }
    tiered, resident = (sides[s]["first_token_ms"]["p95"] for s in ("tiered", "all_resident"))
    return {**sides, "p95_ratio": round(tiered / resident, 3)}


async def _zipf_async(args: argparse.Namespace, replica: ChurnReplica) -> list[Asked]:
    """Ask at random moments, --rate a second; the first tenth warms up and is dropped."""
    rng = random.Random(1)
    weights = [1 / (rank + 1) for rank in range(args.registered)]
    ranked = [f"a{number}" for number in range(args.registered)]
    rng.shuffle(ranked)
    num_warmups = args.requests // 10
    names = rng.choices(ranked, weights, k=args.requests + num_warmups)
    prompts = [replica.prompt(args.prompt_tokens, seed) for seed in range(8)]
    asking = []
    for number, name in enumerate(names):
        work = replica.ask(name, None, prompts[number % 8], args.output_tokens)
        asking.append(asyncio.create_task(work))
        await asyncio.sleep(rng.expovariate(args.rate))
    return (await asyncio.gather(*asking))[num_warmups:]


_PARTS: dict[str, Callable[[argparse.Namespace, Make], dict[str, Any]]] = {
    "load": _load,
    "hot_add": _hot_add,
    "zipf": _zipf,
    "cycles": cycles,
}
