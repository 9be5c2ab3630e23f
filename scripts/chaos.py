"""Break a small clinic under load, and account for every request.

    python -m scripts.chaos            # `make chaos`: every fault, 10 minutes at most
    python -m scripts.chaos --faults model router --seconds 600 --rate 17 --step_s 0.004
    python -m scripts.chaos --faults none --seconds 3600 --rate 3 --sample 60    # a soak
    python -m scripts.chaos --faults none overload none --seconds 60 --sample 5  # what it leaves

Two model replicas and two routers run on this machine, with random weights. Each run sends a mix of
/ask, streams and OpenAI calls while one thing is broken, again and again. In `overload`, more
clients ask without a pause than the clinic lets in at once. Every request ends in exactly one
outcome (scripts/chaos_runs/ledger.py), and each text is compared with the one that was recorded
beforehand. The exit status is 1 if a request was lost, doubled or answered wrong, if a refusal had
no Retry-After, if a fault cost more than its limit, or if an overload refused nobody. With
`--sample` it is also 1 if memory grew by more than 2 % after the first sixth.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import os
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from deployments.startup.cluster import free_port
from deployments.startup.processes import ProcessTree
from scripts.arguments import CommandParser, above_zero, positive
from scripts.benchmarks.over_http.serve_process import serving
from scripts.chaos_runs.clinic import ADAPTERS, num_at_once, write_clinic
from scripts.chaos_runs.faults import LIMITS, Breaker, Limits, come_and_go
from scripts.chaos_runs.ledger import (
    MODES,
    QUESTIONS,
    TOKENS,
    Sent,
    Truth,
    TruthKey,
    account,
    repeated_in,
    send,
)
from scripts.chaos_runs.samples import (
    MAX_GROWTH,
    WARM_UP_SHARE,
    Sample,
    drift,
    sample_forever,
)
from scripts.environment import environment

_DEADLINE_S = 60.0
_OVERLOAD = 1.5  # times what the clinic lets in at once
_ASK_AGAIN_S = 1.0  # after a refusal, whatever it says
_SETTLE_TIMEOUT_S = 90.0
_NUM_TOGETHER = 3  # times that all texts are asked for at once
_MAX_LISTED = 40
_FIRST_S = 3.0  # from the start of the load to the first fault


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(given)
    load_average = {"before": os.getloadavg()}
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        args.folder = Path(folder)
        report = asyncio.run(_run(args, args.folder))
    load_average["after"] = os.getloadavg()
    command = shlex.join(["python", "-m", "scripts.chaos", *given])
    report |= {"what": "chaos", "command": command, "load_average": load_average, **environment()}
    if args.out:
        content = json.dumps(report, indent=1).replace(folder, "FOLDER")
        args.out.write_text(content + "\n")
    print(json.dumps(report))
    return 1 if report["problems"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser("chaos", __doc__)
    add = parser.add_argument
    add("--faults", nargs="+", choices=list(LIMITS), default=list(LIMITS), help="in this order")
    add("--seconds", type=above_zero, default=30.0, help="of load for each fault")
    add("--every", type=above_zero, default=20.0, help="seconds between two faults of a run")
    add("--rate", type=above_zero, default=8.0, help="requests a second")
    add("--replicas", type=positive, default=2, help="of the model")
    add("--routers", type=positive, default=2, help="of the router")
    add("--seed", type=int, default=0, help="of the load and the victims")
    add("--step_s", type=above_zero, help="of a decoder that stands in for the model")
    add("--sample", type=above_zero, help="seconds between two looks at what processes hold")
    add("--out", type=Path, help="write the JSON here too")
    return parser


async def _run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    application = write_clinic(
        folder, replicas=args.replicas, routers=args.routers, step_s=args.step_s
    )
    shutil.copytree(folder / "seed" / "weights" / ADAPTERS[0], folder / "passing")
    dashboard_port, metrics_port = free_port(), free_port()
    ports: dict[str, Any] = {"dashboard_port": dashboard_port, "metrics_port": metrics_port}
    runs: dict[str, Any] = {}
    problems: list[str] = []
    async with serving(folder, [application], _is_ready, **ports) as (session, url, tree):
        rng = random.Random(args.seed)
        content: dict[str, Any] = yaml.safe_load((folder / "serve.yaml").read_text())
        dashboard = f"http://127.0.0.1:{dashboard_port}"
        breaker = Breaker(tree, content, dashboard, folder / "state", rng)
        await _change_catalogue(session, url)
        truth = await _truth(session, url)
        for fault in args.faults:
            await _settle(session, url, breaker, args)
            metrics = f"http://127.0.0.1:{metrics_port}/metrics"
            async with _sampled(args, session, metrics, tree) as samples:
                found = await _one(args, session, url, breaker, fault, truth, rng)
            found |= {"held": drift(samples, args.seconds * WARM_UP_SHARE)} if samples else {}
            problems += check(fault, found, LIMITS[fault])
            runs[f"{fault}, again" if fault in runs else fault] = found
            print(fault, json.dumps(found), flush=True)
    return {"runs": runs, "problems": problems}


def check(fault: str, found: dict[str, Any], limits: Limits) -> list[str]:
    """Return what of a run's ledger must not be."""
    never = ("lost", "doubled", "wrong", "without_retry_after")
    problems = [f"{fault}: {found[name]} {name}" for name in never if found[name]]
    failed = sum(found[name] for name in ("failed", "bare", "cut", "unreached"))
    if found["refused"] < limits.min_refused:
        problems.append(f"{fault}: {found['refused']} refused, so that refusals were not tested")
    for name, count, limit in (
        ("failed", failed, limits.failed),
        ("refused", found["refused"], limits.refused),
    ):
        if count > limit * found["sent"]:
            problems.append(f"{fault}: {count} of {found['sent']} {name}, more than {limit:.0%}")
    problems += [
        f"{fault}: {done}" for done in found.get("faults", ()) if done.startswith("failed: ")
    ]
    growth = found["held"]["memory_growth"] if "held" in found else 0.0
    if growth > MAX_GROWTH:
        problems.append(f"{fault}: memory grew by {growth:.1%}, more than {MAX_GROWTH:.0%}")
    return problems


@contextlib.asynccontextmanager
async def _sampled(
    args: argparse.Namespace, session: aiohttp.ClientSession, metrics: str, tree: ProcessTree
) -> AsyncIterator[list[tuple[float, Sample]]]:
    """Sample meanwhile, if asked to."""
    found: list[tuple[float, Sample]] = []
    if not args.sample:
        yield found
        return
    task = asyncio.create_task(sample_forever(session, metrics, tree, args.sample, found))
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _one(
    args: argparse.Namespace,
    session: aiohttp.ClientSession,
    url: str,
    breaker: Breaker,
    fault: str,
    truth: Truth,
    rng: random.Random,
) -> dict[str, Any]:
    """Send load for `--seconds`, and break things meanwhile; returns the ledger."""
    log = args.folder / "serve.log"
    num_read = log.stat().st_size
    done: list[str] = []
    windows: list[tuple[float, float]] = []  # in which something was broken
    began = time.monotonic()

    async def break_things() -> None:
        await asyncio.sleep(_FIRST_S)
        while True:
            if fault == "versions":
                done.append(await come_and_go(session, url, args.folder / "passing", len(done) + 1))
                await asyncio.sleep(args.every)
                continue
            await _settle(session, url, breaker, args)
            at = time.monotonic() - began
            windows.append((at, math.inf))
            done.append(await breaker.run(fault))
            next_at = time.monotonic() + args.every
            await _settle(session, url, breaker, args)
            windows[-1] = (at, time.monotonic() - began)
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))

    breaking = asyncio.create_task(break_things())
    if fault == "overload":
        let_in = num_at_once(
            replicas=args.replicas, routers=args.routers, is_stand_in=args.step_s is not None
        )
        num = math.ceil(_OVERLOAD * let_in)
        rows = await _crowd(session, url, fault, truth, rng, num=num, seconds=args.seconds)
    else:
        rows = await _load(session, url, fault, truth, rng, rate=args.rate, seconds=args.seconds)
    if not done and not breaking.done():  # a deploy may take longer than the load
        await asyncio.wait([breaking], timeout=0)
    while not done and not breaking.done():
        later_s = time.monotonic() - began
        more = await _load(session, url, f"{fault}+", truth, rng, rate=args.rate, seconds=1)
        rows += [dataclasses.replace(row, started_s=row.started_s + later_s) for row in more]
    breaking.cancel()
    await asyncio.gather(breaking, return_exceptions=True)
    if breaking.done() and not breaking.cancelled() and breaking.exception():
        done.append(f"failed: {breaking.exception()}")
    if len(done) > _MAX_LISTED:
        failed = [fault for fault in done[:-1] if fault.startswith("failed: ")][:_MAX_LISTED]
        done = [f"{len(done)} times, the last:", *failed, done[-1]]
    return {"faults": done, **account(rows, windows, repeated_in(log, num_read))}


async def _load(
    session: aiohttp.ClientSession,
    url: str,
    name: str,
    truth: Truth,
    rng: random.Random,
    *,
    rate: float,
    seconds: float,
) -> list[Sent]:
    """Send requests at random times, whether others have ended or not."""
    started = time.perf_counter()
    rows: list[Sent] = []
    tasks: list[asyncio.Task[None]] = []
    at = 0.0
    for number in itertools.count():
        at += rng.expovariate(rate)
        if at > seconds:
            break
        await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
        row = _request(f"{name}-{number}", truth, rng, started_s=at)
        rows.append(row)
        tasks.append(asyncio.create_task(send(session, url, row, truth, deadline_s=_DEADLINE_S)))
    await asyncio.gather(*tasks)
    return rows


async def _crowd(
    session: aiohttp.ClientSession,
    url: str,
    name: str,
    truth: Truth,
    rng: random.Random,
    *,
    num: int,
    seconds: float,
) -> list[Sent]:
    """Let `num` clients ask, each the next question when its last one has ended."""
    started = time.perf_counter()
    rows: list[Sent] = []

    async def client() -> None:
        while (at := time.perf_counter() - started) < seconds:
            row = _request(f"{name}-{len(rows)}", truth, rng, started_s=at)
            rows.append(row)
            await send(session, url, row, truth, deadline_s=_DEADLINE_S)
            if row.outcome != "answered":
                await asyncio.sleep(_ASK_AGAIN_S)

    await asyncio.gather(*(client() for _ in range(num)))
    return rows


def _request(name: str, truth: Truth, rng: random.Random, *, started_s: float) -> Sent:
    """Return a request of any kind whose text is known."""
    adapter, _, question, tokens = rng.choice(list(truth))
    request_id = f"{name}-{rng.getrandbits(32):08x}".replace("+", "p")
    return Sent(request_id, rng.choice(MODES), adapter, question, tokens, started_s=started_s)


async def _truth(session: aiohttp.ClientSession, url: str) -> Truth:
    """Ask for every text, alone and together with the others, while nothing is broken.

    What has more than one text then is not asked for later: the size of the batch decides it.
    """
    asked = list(itertools.product(("base", *ADAPTERS), range(len(QUESTIONS)), TOKENS))
    texts: dict[TruthKey, set[str]] = {}

    async def ask(number: int, adapter: str, question: int, tokens: int) -> None:
        row = Sent(f"truth-{number}", "ask", adapter, question, tokens)
        await send(session, url, row, {}, deadline_s=_DEADLINE_S)
        assert row.outcome == "answered", f"nothing is broken yet, and this is: {row}"
        texts.setdefault(row.key, set()).add(row.text)

    for number, one in enumerate(asked):
        await ask(number, *one)
    for _ in range(_NUM_TOGETHER):
        await asyncio.gather(*(ask(number, *one) for number, one in enumerate(asked)))
    truth = {key: found.pop() for key, found in texts.items() if len(found) == 1}
    print(f"{len(truth)} of {len(texts)} texts do not depend on the batch", flush=True)
    for key, found in texts.items():
        if found and key not in truth:
            print(f"  {key}: they part after {len(os.path.commonprefix(sorted(found)))} characters")
    assert len(set(truth.values())) > len(texts) / 2, "the texts do not differ"
    return truth


async def _change_catalogue(session: aiohttp.ClientSession, url: str) -> None:
    """Make the state a live one: only that can be missed."""
    async with session.patch(f"{url}/v1/adapters/{ADAPTERS[0]}", json={"pinned": True}) as reply:
        assert reply.status == 200, await reply.text()


async def _settle(
    session: aiohttp.ClientSession, url: str, breaker: Breaker, args: argparse.Namespace
) -> None:
    """Wait until what the last fault has broken is mended, so that the next one breaks one thing.

    Raises:
        RuntimeError: it is not, within _SETTLE_TIMEOUT_S.
    """
    deadline = time.monotonic() + _SETTLE_TIMEOUT_S
    wanted = {"model": args.replicas, "router": args.routers, "proxy": 1, "controller": 1}
    while time.monotonic() < deadline:
        there = {kind: len(breaker.pids(kind)) for kind in wanted}
        if there == wanted and await _num_answering(session, url) == args.replicas:
            return
        await asyncio.sleep(0.5)
    raise RuntimeError(f"not mended after {_SETTLE_TIMEOUT_S:g} s: {there}, not {wanted}")


async def _num_answering(session: aiohttp.ClientSession, url: str) -> int:
    """Return how many model replicas answer the operator; 0 if nobody can be asked."""
    try:
        async with asyncio.timeout(5), session.get(f"{url}/v1/operator") as reply:
            found = (await reply.json())["models"] if reply.status == 200 else []
    except (OSError, ValueError, TimeoutError, aiohttp.ClientError):
        return 0
    return sum("problem" not in model for model in found)


async def _is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with asyncio.timeout(5), session.get(f"{url}/readyz") as reply:
            return reply.status == 200
    except (OSError, TimeoutError, aiohttp.ClientError):
        return False


if __name__ == "__main__":
    raise SystemExit(main())
