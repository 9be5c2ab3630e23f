"""Adapters that come and go, measured in process: engine, tiers and live catalogue of one replica.

    python -m scripts.benchmark churn --out docs/benchmarks/churn_cpu.json
    python -m scripts.benchmark churn --model llama-1b-shape --device cuda --dtype bfloat16 \
        --registered 500 --slots 64 --rows 32 --out docs/benchmarks/churn_llama_1b_shape_h100.json

load: one adapter from each tier to the device. hot_add: new versions while answers run, and what
the others' time per token does meanwhile. zipf: --registered adapters in a bank of --slots, asked
with Zipf's popularity (s = 1), against the same load with every adapter resident. cycles: updates
and roll-backs under load: failed requests, answers of another version, memory. The last line of
stdout is one JSON object.
"""

import argparse
import asyncio
import functools
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from adapters import changes
from adapters.ingest import VersionRequest, inspect_adapter
from adapters.versions import AdapterVersion
from deployments.engine.request import Request, SamplingParams
from deployments.model.adapter_registry import adapter_key
from scripts.benchmarks.churn_clinic import Asked, ChurnClinic, write_catalog
from scripts.benchmarks.models import load_base
from scripts.benchmarks.token_times import per_token_ms, spread
from scripts.environment import environment, save_report


def run(args: argparse.Namespace, argv: Sequence[str] | None = None) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        report = _measure(args, Path(scratch))
    report["command"] = "python -m scripts.benchmark " + " ".join(argv or sys.argv[1:])
    save_report(report, args.out)
    for part in args.parts:
        print(f"{part:<8} {json.dumps(report[part])}")
    print(json.dumps(report))
    return 0


def _measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    base = load_base(args.model, args.device, args.dtype)
    size = write_catalog(
        base.model, scratch / "seed", num=args.registered, rank=args.rank, targets=args.targets
    )
    is_cuda = args.device.startswith("cuda")
    report: dict[str, Any] = {
        "what": "churn",
        **environment(),
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "what")},
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(args.device) if is_cuda else "cpu",
        **size,
    }
    numbers = itertools.count()

    def clinic(slots: int) -> ChurnClinic:
        return ChurnClinic(
            load_base(args.model, args.device, args.dtype),  # a decoder takes its base's weights
            scratch / "seed",
            scratch / f"state{next(numbers)}",
            slots=slots,
            rows=args.rows,
            host_mib=args.host_mib,
        )

    for part in args.parts:
        started = time.perf_counter()
        report[part] = _PARTS[part](args, clinic)
        seconds = time.perf_counter() - started
        print(f"{part:<8} {seconds:.0f} s  {json.dumps(report[part])[:600]}", file=sys.stderr)
    return report


Make = Callable[[int], ChurnClinic]


def _load(args: argparse.Namespace, make: Make) -> dict[str, Any]:
    """Disk -> memory, memory -> device, and the first install with its probe; in milliseconds."""
    clinic = make(args.slots)
    versions = [(a.name, a.stable) for a in clinic.store.read().adapters[-12:]]
    times: dict[str, list[float]] = {"read": [], "install_probed": [], "install": []}
    for position, (name, version) in enumerate(versions):
        key = adapter_key(name, version)
        started = time.perf_counter()
        weights = clinic.decoder.read_adapter(clinic.store.folder(version))
        read_s = time.perf_counter() - started
        seconds = {"read": read_s}
        for kind, probe in (("install_probed", True), ("install", False)):
            _evict_one(clinic, args.slots)
            install = functools.partial(clinic.decoder.install, key, weights, probe=probe)
            seconds[kind] = _between_steps(clinic, install)
            _between_steps(clinic, functools.partial(clinic.decoder.evict, key))
        if position >= 2:  # the first ones warm up
            for kind, value in seconds.items():
                times[kind].append(value * 1000)
    clinic.close()
    return {f"{kind}_ms": spread(values) for kind, values in times.items()}


def _evict_one(clinic: ChurnClinic, slots: int) -> None:
    """A place in the bank, which the holder has filled."""
    held = clinic.engine.info.adapters
    if len(held) >= slots:
        _between_steps(clinic, lambda: clinic.decoder.evict(held[0]))


def _between_steps(clinic: ChurnClinic, errand: Callable[[], Any]) -> float:
    """Seconds on the engine's thread, the device's work included."""

    def timed() -> float:
        started = time.perf_counter()
        errand()
        if clinic.decoder.device.type == "cuda":
            torch.cuda.synchronize(clinic.decoder.device)
        return time.perf_counter() - started

    return clinic.engine.run_between_steps(timed).result(120)


def _hot_add(args: argparse.Namespace, make: Make) -> dict[str, Any]:
    return asyncio.run(_hot_add_async(args, make(args.slots)))


async def _hot_add_async(args: argparse.Namespace, clinic: ChurnClinic) -> dict[str, Any]:
    """Others' time per token: while new versions are added, and in pauses as long in between."""
    names = [a.name for a in clinic.store.read().adapters[: args.slots - 1]]
    stop, failed = asyncio.Event(), [0]
    tokens: list[float] = []
    prompt = clinic.prompt(args.prompt_tokens)

    async def others(name: str) -> None:
        while not stop.is_set():
            key = await asyncio.to_thread(clinic.holder.lease, name, None)
            try:
                request = Request("r", prompt, key, SamplingParams(200))
                async for event in clinic.engine.generate(request):
                    tokens.append(time.perf_counter())
                    failed[0] += event.error is not None
                    if stop.is_set():
                        break
            finally:
                clinic.holder.release(key)

    running = [
        asyncio.create_task(others(names[1 + i % (len(names) - 1)])) for i in range(args.rows - 1)
    ]
    await asyncio.sleep(3)
    # The first change of a catalogue copies the seed's files, which is not repeated.
    await asyncio.to_thread(_new_version, clinic, names[0], "first")
    await asyncio.sleep(1)
    adds, adding, quiet = [], [], []
    for number in range(args.adds):
        started = time.perf_counter()
        await asyncio.to_thread(_new_version, clinic, names[0], f"v{number}")
        adds.append(time.perf_counter() - started)
        adding.append((started, time.perf_counter()))
        pause = max(1.0, adds[-1])
        begin = time.perf_counter()
        await asyncio.sleep(pause)
        quiet.append((begin, time.perf_counter()))
    stop.set()
    await asyncio.gather(*running)
    clinic.close()
    per_token = {
        "adding": per_token_ms(tokens, adding, args.rows - 1),
        "quiet": per_token_ms(tokens, quiet, args.rows - 1),
    }
    return {
        "add_s": spread(adds),
        "others_ms_per_token": {k: round(v, 3) for k, v in per_token.items()},
        "rise": round(per_token["adding"] / per_token["quiet"] - 1, 3),
        "longest_gap_ms": round(max(b - a for a, b in itertools.pairwise(tokens)) * 1000, 1),
        "failed": failed[0],
    }


def _new_version(clinic: ChurnClinic, name: str, version: str) -> None:
    """As the operator's API does it: files into the store, tried out, listed, taken over."""
    found = clinic.store.read().adapter(name)
    assert found is not None
    folder = clinic.state / "sources" / version
    folder.mkdir(parents=True)
    for file in clinic.store.folder(found.stable).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"revision": version}))
    record = inspect_adapter(folder, VersionRequest(name, None, "bench", version, str(folder)))
    clinic.store.put(record.digest, folder)
    problems = clinic.holder.dry_run(name, record)
    assert not problems, problems
    _list(clinic, name, record)
    clinic.holder.sync()


def _list(clinic: ChurnClinic, name: str, record: AdapterVersion) -> None:
    clinic.store.change(
        lambda c: changes.add_version(
            c, name=name, specialty=None, base_model="bench", version=record
        )
    )


def _zipf(args: argparse.Namespace, make: Make) -> dict[str, Any]:
    sides = {}
    for side, slots in (("tiered", args.slots), ("all_resident", args.registered)):
        clinic = make(slots)
        asked = asyncio.run(_zipf_async(args, clinic))
        clinic.close()
        del clinic
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()
        sides[side] = {
            "slots": slots,
            "hit_rate": round(sum(a.was_resident for a in asked) / len(asked), 4),
            "first_token_ms": spread([a.first_token_s * 1000 for a in asked]),
            "failed": sum(a.failed for a in asked),
        }
    tiered, resident = (sides[s]["first_token_ms"]["p95"] for s in ("tiered", "all_resident"))
    return {**sides, "p95_ratio": round(tiered / resident, 3)}


async def _zipf_async(args: argparse.Namespace, clinic: ChurnClinic) -> list[Asked]:
    """Arrivals at random moments, --rate a second; a tenth warms up and is not counted."""
    rng = random.Random(1)
    weights = [1 / (rank + 1) for rank in range(args.registered)]
    ranked = [f"a{number}" for number in range(args.registered)]
    rng.shuffle(ranked)
    num_warmups = args.requests // 10
    names = rng.choices(ranked, weights, k=args.requests + num_warmups)
    prompts = [clinic.prompt(args.prompt_tokens, seed) for seed in range(8)]
    asking = []
    for number, name in enumerate(names):
        work = clinic.ask(name, None, prompts[number % 8], args.output_tokens)
        asking.append(asyncio.create_task(work))
        await asyncio.sleep(rng.expovariate(args.rate))
    return (await asyncio.gather(*asking))[num_warmups:]


def _cycles(args: argparse.Namespace, make: Make) -> dict[str, Any]:
    return asyncio.run(_cycles_async(args, make(args.slots)))


async def _cycles_async(args: argparse.Namespace, clinic: ChurnClinic) -> dict[str, Any]:
    """Every answer is compared with those of both versions, made one at a time before."""
    await asyncio.to_thread(_new_version, clinic, "a0", "2")
    # Another content, so that its answers differ: the second adapter's weights.
    prompt = clinic.prompt(args.prompt_tokens)
    other = clinic.store.read().adapter("a1")
    assert other is not None
    record = other.stable.model_copy(update={"version": "3"})
    _list(clinic, "a0", record)
    clinic.holder.sync()
    answers = {v: (await clinic.ask("a0", v, prompt, 8)).text for v in ("1", "3")}
    assert answers["1"] != answers["3"], "the versions do not differ: nothing would be tested"
    counts = dict.fromkeys(("right", "wrong_version", "other_text", "failed"), 0)
    stop, version = asyncio.Event(), ["3"]

    async def ask_on() -> None:
        while not stop.is_set():
            mine = version[0]
            asked = await clinic.ask("a0", mine, prompt, 8)
            against = answers["1" if mine == "3" else "3"]
            counts[_kind_of(asked, answers[mine], against)] += 1

    running = [asyncio.create_task(ask_on()) for _ in range(max(1, args.rows // 2))]
    samples, started = [], time.perf_counter()
    for cycle in range(args.cycles + 1):
        if cycle % max(1, args.cycles // 20) == 0:
            samples.append((cycle, _rss_mib()))
        for wanted in ("1", "3"):  # the roll-back, and the update again
            await asyncio.to_thread(_switch, clinic, wanted)
            version[0] = wanted
    stop.set()
    await asyncio.gather(*running)
    clinic.close()
    late = [s for s in samples if s[0] >= args.cycles // 5]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope * 100
    return {
        "cycles": args.cycles,
        "seconds": round(time.perf_counter() - started, 1),
        **counts,
        "growth_mib_per_100": round(slope, 3),
        "rss_mib": [(cycle, round(mib, 2)) for cycle, mib in samples],
    }


def _switch(clinic: ChurnClinic, version: str) -> None:
    clinic.store.change(lambda c: changes.update(c, "a0", version=version))
    clinic.holder.sync()


def _kind_of(asked: Asked, wanted: str, against: str) -> str:
    if asked.failed:
        return "failed"
    if asked.text == wanted:
        return "right"
    return "wrong_version" if asked.text == against else "other_text"


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


_PARTS: dict[str, Callable[[argparse.Namespace, Make], dict[str, Any]]] = {
    "load": _load,
    "hot_add": _hot_add,
    "zipf": _zipf,
    "cycles": _cycles,
}
