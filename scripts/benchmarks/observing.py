"""Measure what records of requests and traces cost: processor time of the whole application.

    python -m scripts.benchmark observing --out docs/benchmarks/observing.json
    python -m scripts.benchmark observing --base_model smollm2-135m-instruct --rounds 10

Two applications on one Ray Serve: `quiet` as it is shipped, and `observed` with `log_requests` and
every request traced to a collector in this process. Their decoder does no work, so that all there
is to pay for is the way of an answer, unless `--base_model` names one that does. In turn,
`--rounds` times; processor time is that of all processes of Serve, per answer. `metrics_us` is what
the metrics of one answer cost, in process.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from aiohttp import web

from deployments.startup.processes import ProcessTree
from scripts.benchmarks.command import add_out, publish, settings_of
from scripts.benchmarks.over_http.http_client import PreparedRequest, run_count, run_for, succeeds
from scripts.benchmarks.over_http.serve_process import serving
from scripts.benchmarks.over_http.streams import QUESTION

WARM_UP = 40
MAX_SHARE = 0.03
_NUM_METRIC_RUNS = 2000
_SIDES = ("quiet", "observed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base_model", help="that answers; default: a decoder that does no work")
    parser.add_argument("--rounds", type=int, default=5, help="each with both sides in turn")
    parser.add_argument("--seconds", type=float, default=5, help="of each side, per round")
    parser.add_argument("--concurrency", type=int, default=16, help="connections")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, which is streamed")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        measured = asyncio.run(_measure(args, Path(scratch)))
    measured["load_average"] = {"before": before, "after": os.getloadavg()}
    publish("observing", arguments, measured, out=args.out, lines=measured["sides"].items())
    return 0


async def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    body = {"question": QUESTION, "max_tokens": args.tokens, "stream": True}
    if args.base_model is not None:
        body["grounding"] = "off"  # a quotation needs no decoder

    async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
        return all([await succeeds(session, request) for request in requests(url)])

    def requests(url: str) -> list[PreparedRequest]:
        return [PreparedRequest.post(side, f"{url}/{side}/ask", body, {}) for side in _SIDES]

    rounds: dict[str, list[tuple[float, float]]] = {side: [] for side in _SIDES}
    async with _collector() as (endpoint, received):
        apps = [_application(side, folder, endpoint, args.base_model) for side in _SIDES]
        async with serving(folder, apps, is_ready) as (session, url, tree):
            for request in requests(url):
                await run_count(session, request, WARM_UP)
            for _ in range(args.rounds):
                for request in requests(url):
                    before = _processor_s(tree)
                    timed = await run_for(session, request, args.concurrency, args.seconds)
                    num, used_s = len(timed.latencies_s), _processor_s(tree) - before
                    rounds[request.name].append((1000 * used_s / num, timed.requests_per_s))
    return {
        **settings_of(args),
        "spans_bytes_received": sum(received),
        "metrics_us": round(_metrics_us(), 1),
        **summary(rounds),
    }


def summary(rounds: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Return each side's (processor ms per answer, answers a second), and medians of the share that
    `observed` adds and keeps in each round."""
    pairs = list(zip(rounds["quiet"], rounds["observed"], strict=True))
    added = [observed[0] / quiet[0] - 1 for quiet, observed in pairs]
    kept = [observed[1] / quiet[1] for quiet, observed in pairs]
    return {
        "sides": {
            side: {
                "processor_ms": [round(ms, 2) for ms, _ in found],
                "answers_per_s": [round(rate, 1) for _, rate in found],
            }
            for side, found in rounds.items()
        },
        "added_processor_share": round(statistics.median(added), 4),
        "added_range": [round(min(added), 4), round(max(added), 4)],
        "share_of_answers_kept": round(statistics.median(kept), 4),
        "target": {"most": MAX_SHARE, "is": round(statistics.median(added), 4)},
    }


def _application(side: str, folder: Path, endpoint: str, base: str | None) -> dict[str, Any]:
    served = {"step_s": 0.002} if base is None else {"base_model": base}
    builder = "scripts.benchmarks.over_http.stand_in_model:build_clinic"
    is_observed = side == "observed"
    live = {"log_requests": is_observed}
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} if is_observed else {}
    return {
        "name": side,
        "route_prefix": f"/{side}",
        "import_path": builder if base is None else "deployments.app:build",
        "runtime_env": {"env_vars": environment},
        "args": {"device": "cpu", "state_dir": str(folder / side), **served},
        "deployments": [
            {"name": "Router", "ray_actor_options": {"num_cpus": 0.1}, "user_config": live},
            {"name": "Model", "ray_actor_options": {"num_cpus": 0.2}, "user_config": live},
        ],
    }


@contextlib.asynccontextmanager
async def _collector() -> AsyncIterator[tuple[str, list[int]]]:
    """Take what is sent to it; yields its endpoint, and the bytes of each request."""
    received: list[int] = []

    async def take(request: web.Request) -> web.Response:
        received.append(len(await request.read()))
        return web.Response()

    application = web.Application()
    application.router.add_post("/v1/traces", take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", received
    finally:
        await runner.cleanup()


def _processor_s(tree: ProcessTree) -> float:
    used = 0.0
    for pid in tree.alive():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            used += times.user + times.system
    return used


def _metrics_us() -> float:
    """Return microseconds of the metrics of one answer: those of its model and of its router."""
    from deployments.engine.request import FinishReason, Timings, TokenEvent
    from deployments.ingress.metrics import RouteMetrics
    from deployments.messages import Outcome
    from deployments.model.answers import AnswerMetrics

    answers, routes = AnswerMetrics(), RouteMetrics()
    event = TokenEvent("r", "", 64, 16, Timings(0.1, 0.2, 1.0), FinishReason.STOP)
    outcome = Outcome("cardiology", "cardiology", "stop", 0.9)
    started = time.process_time()
    for _ in range(_NUM_METRIC_RUNS):
        answers.record("cardiology", "active", event)
        routes.record(outcome)
    return 1e6 * (time.process_time() - started) / _NUM_METRIC_RUNS
