"""Measure where questions go when there are more adapters than a replica has places.

    python -m scripts.benchmark placement --out docs/benchmarks/placement_cpu.json
    python -m scripts.benchmark placement --sides adapter --requests 300

Over HTTP, on a private Ray Serve on loopback: `--replicas` model replicas whose decoder does no
work, but takes `--load_s` to read an adapter and `--step_s` for each token. Questions come at
random times, `--rate` a second, for adapters by Zipf's popularity (s = 1); which adapter is popular
is drawn by `--seed`. Before the questions that count, as many warm the places.

For each side of `--sides` (model_replicas.placement): the share of answers whose adapter was there,
and the time to the first token.
"""

import argparse
import asyncio
import itertools
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from scripts.arguments import above_zero, positive
from scripts.benchmarks.command import add_out, conditions, publish, spread
from scripts.benchmarks.over_http.http_client import (
    LoadError,
    PreparedRequest,
    call,
    chat_body,
    is_served,
    read_stream,
)
from scripts.benchmarks.over_http.serve_process import serving
from scripts.benchmarks.over_http.streams import QUESTION

_SIDES = ("load", "adapter")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_out(parser)
    add = parser.add_argument
    add("--sides", nargs="+", choices=_SIDES, default=list(_SIDES), help="in this order")
    add("--adapters", type=positive, default=2000, help="in the catalogue")
    add("--slots", type=positive, default=64, help="of each replica")
    add("--replicas", type=positive, default=2, help="of the model")
    add("--routers", type=positive, default=1, help="replicas of the router")
    add("--rows", type=positive, default=16, help="answers of a replica together")
    add("--requests", type=positive, default=600, help="that count, of each side")
    add("--rate", type=above_zero, default=15.0, help="requests a second")
    add("--load_s", type=above_zero, default=0.25, help="to read an adapter")
    add("--step_s", type=above_zero, default=0.02, help="of a decoding step")
    add("--output_tokens", type=positive, default=8, help="of each answer")
    add("--seed", type=int, default=0, help="of times and adapters")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        application = _application(args, folder)
        sides = {
            side: asyncio.run(_measure(args, folder, application, side)) for side in args.sides
        }
    about = conditions(argparse.Namespace(**vars(args), device="cpu"), before)
    publish("placement", arguments, about | {"sides": sides}, out=args.out, lines=sides.items())
    return 0


def _application(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from scripts.benchmarks.bases.models import load_skeleton
    from scripts.benchmarks.in_process.random_adapters import write_catalog
    from scripts.benchmarks.live_adapters.hot_add_service import several_on_one_cpu
    from scripts.chaos_runs.clinic import write_base

    base = write_base(folder / "base", seed=0)
    alike: dict[str, Any] = {"rank": 1, "targets": None, "base_name": str(base)}
    write_catalog(load_skeleton(base), folder / "seed", num=args.adapters, **alike)
    return {
        "name": "clinic",
        "route_prefix": "/",
        "import_path": "scripts.benchmarks.over_http.stand_in_model:build_clinic",
        "args": {
            "step_s": args.step_s,
            "load_s": args.load_s,
            "base_model": str(base),
            "adapters": str(folder / "seed"),
            "state_dir": str(folder / "state"),
            "device": "cpu",
            "auth": {"mode": "open", "open_admin": True},
            "router": {"replicas": args.routers},
            "engine": {"max_rows": args.rows, "max_adapters": args.slots, "max_waiting": 10_000},
        },
        "deployments": [several_on_one_cpu(args.replicas)],
    }


async def _measure(
    args: argparse.Namespace, folder: Path, application: dict[str, Any], side: str
) -> dict[str, Any]:
    application["args"]["model_replicas"] = {"placement": side}

    async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
        num_ready: int = args.replicas
        return len(await _found(session, url)) == num_ready and await is_served(session, url)

    async with serving(folder, [application], is_ready) as (session, url, _):
        rng = random.Random(args.seed)
        names = [f"a{number}" for number in range(args.adapters)]
        rng.shuffle(names)
        weights = list(itertools.accumulate(1 / rank for rank in range(1, args.adapters + 1)))
        asked = rng.choices(names, cum_weights=weights, k=2 * args.requests)
        await _ask(args, session, url, asked[: args.requests], rng)
        before = await _found(session, url)
        found = await _ask(args, session, url, asked[args.requests :], rng)
        first_token_s = [seconds for seconds in found if seconds is not None]
        after = await _found(session, url)
    each: list[dict[str, int]] = [
        {kind: after[name][kind] - before[name][kind] for kind in ("adapter_hits", "adapter_waits")}
        for name in sorted(after)
    ]
    hits, waits = (sum(counts[kind] for counts in each) for kind in each[0])
    return {
        "hit_rate": round(hits / (hits + waits), 4),
        "first_token_s": spread(first_token_s),
        "failed": len(found) - len(first_token_s),
        "each_replica": each,
    }


async def _found(session: aiohttp.ClientSession, url: str) -> dict[str, dict[str, int]]:
    """Return the counts of each model replica that has read the catalogue."""
    try:
        status, content = await call(session, "GET", f"{url}/v1/operator")
    except (OSError, ValueError):  # nothing is routed yet
        return {}
    models = content["models"] if status == 200 else []
    return {model["replica"]: model for model in models if "adapter_hits" in model}


async def _ask(
    args: argparse.Namespace,
    session: aiohttp.ClientSession,
    url: str,
    adapters: Sequence[str],
    rng: random.Random,
) -> list[float | None]:
    """Ask at random times, whether others have ended or not; returns the times to first tokens,
    None for an answer that failed."""

    async def first_token(adapter: str) -> float | None:
        body = chat_body(QUESTION, args.output_tokens, model=adapter)
        request = PreparedRequest.post(adapter, f"{url}/v1/chat/completions", body)
        try:
            return (await read_stream(session, request)).first_token_s
        except (LoadError, OSError, ValueError, aiohttp.ClientError) as error:
            print(f"{adapter}: {error}")
            return None

    asking = []
    for adapter in adapters:
        asking.append(asyncio.create_task(first_token(adapter)))
        await asyncio.sleep(rng.expovariate(args.rate))
    return list(await asyncio.gather(*asking))
