"""Measure the whole application over HTTP: closed-loop streams of mixed adapters.

    python -m scripts.benchmark serve --streams 1 16 --output_tokens 64
    python -m scripts.benchmark serve --model llama-1b-shape --device cuda --dtype bfloat16 \\
        --streams 64 128 --rows 128 --routers 4 --mode fast

A private Ray Serve on loopback, with API keys and random adapters; each stream asks for one answer
after the other, of exactly `--output_tokens` tokens, each from the next adapter. `--mode fast` is
Ray's HAProxy ingress and throughput mode; it runs in a network namespace of its own, which needs
root. Compare tokens_per_s with the engine in process (`scripts.benchmark engine`).

With `--rates`, requests also come at random times (Poisson), so many a second for `--rate_s`,
whether others have ended or not: what they wait for, how many fail, and up to which rate none does
and the p95 of the first token is at most `--first_token_p95_s`. `--popularity` chooses the adapters
as in `scripts.benchmark load`.

Beside each run stands what the processes took of the processors (`cpu_ms_per_answer`, by role), and
what they take while nobody asks (`idle_cores`), which is a part of it. With `--stand_in_step_s` the
decoder takes nothing, and other work on the machine changes the rest little.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import aiohttp

from scripts.arguments import above_zero, positive
from scripts.benchmarks.command import add_model_arguments, conditions, publish
from scripts.benchmarks.live_adapters.hot_add_operator import Operator
from scripts.benchmarks.over_http.closed_loop import WARM_UP_S, closed_loop, figures
from scripts.benchmarks.over_http.cpu_time import seconds_by_role, spent
from scripts.benchmarks.over_http.http_client import PreparedRequest, chat_body
from scripts.benchmarks.over_http.open_loop import (
    POPULARITIES,
    add_rates,
    draw,
    limits_of,
    open_loop,
    rate_figures,
)
from scripts.benchmarks.over_http.serve_process import in_private_network, serving

QUESTION = (
    "My heart sometimes races for a minute when I climb the stairs, and afterwards I feel dizzy "
    "and a little sick; is that dangerous, and which tests should I ask my doctor for?"
)
_IDLE_S = 5.0
_DRAWN = 1024  # requests for adapters at random, asked again and again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, devices=["cpu", "cuda"])
    add = parser.add_argument
    add("--streams", type=positive, nargs="+", default=[1, 16], help="at once, one run for each")
    add("--output_tokens", type=positive, default=128, help="of each answer")
    add("--adapters", type=positive, default=8, help="that answer")
    add("--popularity", choices=POPULARITIES, default="turns", help="of the adapters")
    add("--rows", type=positive, default=16, help="answers of a replica together")
    add("--routers", type=positive, default=1, help="replicas of the router")
    add("--replicas", type=positive, default=1, help="of the model")
    add("--classified", action="store_true", help="the router chooses who answers")
    add("--clients", type=positive, default=1, help="processes that ask, on the same cores")
    add("--seconds", type=above_zero, default=20.0, help="of each run")
    add_rates(parser)
    stands_in = "a decoder that sleeps so long in each step, and computes nothing, takes its place"
    add("--stand_in_step_s", type=above_zero, help=stands_in)
    add("--mode", choices=["default", "fast"], default="default", help="Ray Serve's ingress")
    add("--ready_timeout_s", type=above_zero, default=400.0, help="until Serve must be ready")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    if args.mode == "fast" and (status := in_private_network(arguments)) is not None:
        return status
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        measured = asyncio.run(_measure(args, Path(scratch)))
    runs = [(f"{found['streams']} streams", found) for found in measured["runs"]]
    rates = [(f"{found['rate_per_s']:g} a second", found) for found in measured.get("rates", [])]
    shown = [("idle, cores", measured["idle_cores"]), *runs, *rates]
    publish("serve", arguments, conditions(args, before) | measured, out=args.out, lines=shown)
    return 0


async def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the parts of each model replica's start, what the processes take while nobody asks,
    and the figures of each run."""
    from scripts.benchmarks.live_adapters.hot_add_service import prepare

    unused = {"adds": 1, "changes": 1, "slots": args.adapters, "megabytes": None}
    service = prepare(argparse.Namespace(**(vars(args) | unused)), folder)
    service.application["args"]["router"] = {"replicas": args.routers}
    if args.stand_in_step_s:
        service.application["import_path"] = (
            "scripts.benchmarks.over_http.stand_in_model:build_clinic"
        )
        service.application["args"]["step_s"] = args.stand_in_step_s
    names = [f"a{number}" for number in range(args.adapters)]
    models = [None] if args.classified else names
    requests = [
        chat_body(QUESTION, args.output_tokens, model=model) | {"min_tokens": args.output_tokens}
        for model in models
    ]

    def operator(session: aiohttp.ClientSession, url: str) -> Operator:
        return Operator(session, url, service.user, service.admin, args.replicas)

    async with serving(
        folder,
        [service.application],
        lambda session, url: operator(session, url).is_ready(),
        fast=args.mode == "fast",
        ready_timeout_s=args.ready_timeout_s,
    ) as (session, url, tree):
        starts = [model["start"] for model in await operator(session, url).models()]
        prepared = [
            PreparedRequest.post(name or "auto", f"{url}/v1/chat/completions", body, service.user)
            for name, body in zip(models, requests, strict=True)
        ]
        if args.popularity != "turns":
            prepared = draw(prepared, args.popularity, _DRAWN)
        with ProcessPoolExecutor(args.clients, get_context("spawn")) as clients:
            await closed_loop(clients, args.clients, prepared, max(args.streams), WARM_UP_S)
            before = seconds_by_role(tree.alive())
            await asyncio.sleep(_IDLE_S)
            idle, runs = spent(before, seconds_by_role(tree.alive()), _IDLE_S), []
            for num in args.streams:
                before = seconds_by_role(tree.alive())
                found = await closed_loop(clients, args.clients, prepared, num, args.seconds)
                run = figures(num, *found)
                cpu_ms = spent(before, seconds_by_role(tree.alive()), run["answers"] / 1000)
                runs.append(run | {"cpu_ms_per_answer": cpu_ms})
            measured = {"starts": _parts_of(starts), "idle_cores": idle, "runs": runs}
            return measured | await _rates(args, clients, prepared)


async def _rates(
    args: argparse.Namespace, clients: ProcessPoolExecutor, requests: Sequence[PreparedRequest]
) -> dict[str, Any]:
    """Return the figures of each rate and the rate up to which they hold; nothing without rates."""
    limit, rates = args.first_token_p95_s, []
    for rate in args.rates:
        found = await open_loop(clients, args.clients, requests, rate, args.rate_s)
        rates.append(rate_figures(rate, found, limit))
    return {"rates": rates, "limits": limits_of(rates, limit)} if rates else {}


def _parts_of(starts: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the seconds of each part of each start, and of all together."""
    return [
        {part: round(seconds, 2) for part, seconds in start.items() if part.endswith("_s")}
        | {"all_s": round(start["ready_at"] - start["began_at"], 2)}
        for start in starts
    ]
