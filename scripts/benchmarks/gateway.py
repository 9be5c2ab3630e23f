"""Measure what our HTTP side costs on top of Ray's own no-op chain, in one run.

    python -m scripts.benchmark gateway --out docs/benchmarks/gateway_default.json
    python -m scripts.benchmark gateway --mode fast --out docs/benchmarks/gateway_fast.json

Sides: `chain` (a Starlette router that reads the body and calls a model deployment that returns a
word), `gateway` (this application with an API key, limits, validation and an explicit specialty;
the model replica is ours with its engine, and a decoder that does no work), `classified` (the same,
with the router's classification). All on one Ray Serve, in turn, `--rounds` times; the client is on
the same cores. `fast` needs root: Ray's HAProxy opens ports on all interfaces, so that run is made
in a private network namespace.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from scripts.benchmarks.command import add_out, publish, quantile
from scripts.benchmarks.over_http.http_client import (
    PreparedRequest,
    Timed,
    run_count,
    run_for,
    succeeds,
)
from scripts.benchmarks.over_http.serve_process import in_private_network, key_headers, serving
from scripts.benchmarks.over_http.streams import QUESTION

WARM_UP = 50
MAX_ADDED_MS = 3.0
MIN_KEPT = 0.6

Rounds = dict[str, list[tuple[Timed, Timed]]]
"""Side -> (one after the other, at full load) of each round."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", choices=["default", "fast"], default="default", help="of Serve")
    parser.add_argument("--rounds", type=int, default=5, help="each with every side in turn")
    parser.add_argument("--requests", type=int, default=150, help="one after the other, per round")
    parser.add_argument("--seconds", type=float, default=4, help="at full load, per round")
    parser.add_argument("--concurrency", type=int, default=32, help="connections at full load")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    if args.mode == "fast":
        status = in_private_network(arguments)
        if status is not None:
            return status
    with tempfile.TemporaryDirectory() as scratch:
        measured = {"mode": args.mode, **asyncio.run(_measure(args, Path(scratch)))}
    shown = [*measured["sides"].items(), ("targets", measured["targets"])]
    publish("gateway", arguments, measured, out=args.out, lines=shown)
    return 0


async def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    (headers,) = key_headers(folder / "state", "user")

    async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
        return all([await succeeds(session, request) for request in _requests(url, headers)])

    ready = serving(folder, _applications(folder), is_ready, fast=args.mode == "fast")
    async with ready as (session, url, _):
        rounds = await _rounds(session, _requests(url, headers), args)
    return {
        "rounds": args.rounds,
        "num_warmups": WARM_UP,
        "concurrency": args.concurrency,
        "seconds_at_full_load": args.seconds,
        **summary(rounds),
    }


def _requests(url: str, headers: dict[str, str]) -> list[PreparedRequest]:
    body = {"question": QUESTION, "max_tokens": 1}
    explicit = {**body, "specialty": "cardiology"}
    return [
        PreparedRequest.post("chain", f"{url}/chain/ask", explicit, headers),
        PreparedRequest.post("gateway", f"{url}/clinic/ask", explicit, headers),
        PreparedRequest.post("classified", f"{url}/clinic/ask", body, headers),
    ]


def _applications(folder: Path) -> list[dict[str, Any]]:
    module = "scripts.benchmarks.over_http.stand_in_model"
    clinic = f"{module}:build_clinic"
    args = {"device": "cpu", "auth": {"mode": "keys"}, "state_dir": str(folder / "state")}
    return [
        {
            "name": "chain",
            "route_prefix": "/chain",
            "import_path": f"{module}:build_chain",
            "args": {"max_ongoing": 32},  # what the clinic's 16 rows amount to
        },
        {"name": "clinic", "route_prefix": "/clinic", "import_path": clinic, "args": args},
    ]


async def _rounds(
    session: aiohttp.ClientSession, requests: Sequence[PreparedRequest], args: argparse.Namespace
) -> Rounds:
    for request in requests:
        await run_count(session, request, WARM_UP)
        await run_for(session, request, args.concurrency, 1.0)
    rounds: Rounds = {request.name: [] for request in requests}
    for _ in range(args.rounds):
        for request in requests:
            alone = await run_count(session, request, args.requests)
            loaded = await run_for(session, request, args.concurrency, args.seconds)
            rounds[request.name].append((alone, loaded))
    return rounds


def summary(rounds: Rounds) -> dict[str, Any]:
    """Return each side's figures, and medians of their difference from `chain` in each round."""
    sides = {name: _side(found) for name, found in rounds.items()}
    compared = {
        name: _over_chain(side, sides["chain"]) for name, side in sides.items() if name != "chain"
    }
    gateway = compared["gateway"]
    return {
        "sides": sides,
        "over_chain": compared,
        "targets": {
            "added_p50_ms": {"most": MAX_ADDED_MS, "is": gateway["added_p50_ms"]},
            "share_of_requests_kept": {"least": MIN_KEPT, "is": gateway["share_of_requests_kept"]},
        },
    }


def _over_chain(side: dict[str, list[float]], chain: dict[str, list[float]]) -> dict[str, Any]:
    added = [a - b for a, b in zip(side["p50_ms"], chain["p50_ms"], strict=True)]
    rates = zip(side["requests_per_s"], chain["requests_per_s"], strict=True)
    kept = [a / b for a, b in rates]
    return {
        "added_p50_ms": round(statistics.median(added), 2),
        "added_p50_ms_range": [round(min(added), 2), round(max(added), 2)],
        "share_of_requests_kept": round(statistics.median(kept), 3),
        "share_range": [round(min(kept), 3), round(max(kept), 3)],
    }


def _side(found: Sequence[tuple[Timed, Timed]]) -> dict[str, list[float]]:
    alone, loaded = zip(*found, strict=True)
    return {
        "p50_ms": _quantiles_ms(alone, 0.5),
        "p99_ms": _quantiles_ms(alone, 0.99),
        "requests_per_s": [round(timed.requests_per_s, 1) for timed in loaded],
        "loaded_p50_ms": _quantiles_ms(loaded, 0.5),
        "loaded_p99_ms": _quantiles_ms(loaded, 0.99),
    }


def _quantiles_ms(runs: Sequence[Timed], share: float) -> list[float]:
    return [round(quantile(timed.latencies_s, share) * 1000, 2) for timed in runs]
