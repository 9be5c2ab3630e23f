"""Measure new versions of an adapter on several model replicas, and what other answers notice.

    python -m scripts.benchmark hot_add --dtype float32 --out docs/benchmarks/hot_add_http_cpu.json
    python -m scripts.benchmark hot_add --model llama-1b-shape --device cuda --streams 16 --rows 16

Over HTTP only, on a private Ray Serve on loopback, with API keys. POST /v1/adapters adds a version
from a local folder `--adds` times; its seconds end with the reply, in which every replica has
confirmed, and answers that are asked for then must name the version. PATCH (to the version before
and back) and DELETE follow. Meanwhile `--streams` answers of other adapters run: their time per
token during the adds is compared with that of quiet windows as long in between.

On the CPU the replicas share its cores, which the application alone does not do. On GPUs each
replica needs one, so there must be `--replicas` of them.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from scripts.arguments import above_zero, at_least, positive
from scripts.benchmarks.command import add_model_arguments, conditions, publish, spread
from scripts.benchmarks.live_adapters.hot_add_operator import Operator
from scripts.benchmarks.over_http.serve_process import serving
from scripts.benchmarks.over_http.streams import (
    Streamed,
    Window,
    longest_gap_s,
    per_token_ms,
    streaming,
)

MAX_ADD_S = 3.0
MAX_RISE = 0.1
_SETTLE_S = 0.5  # between the answers that check an add and the quiet window

Windows = dict[str, list[Window]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, devices=["cpu", "cuda"], rank=None)
    add = parser.add_argument
    add("--replicas", type=positive, default=2, help="of the model")
    # One gets new versions, and the streams ask the others.
    add("--adapters", type=at_least(2), default=6, help="in the catalogue, from 2")
    add("--slots", type=positive, default=32, help="adapters on a replica's device")
    add("--megabytes", type=above_zero, default=8.0, help="of an adapter, without --rank")
    add("--adds", type=positive, default=8, help="new versions of one adapter")
    add("--changes", type=positive, default=4, help="rounds of the other calls")
    add("--streams", type=positive, default=4, help="of the other adapters")
    add("--output_tokens", type=positive, default=200, help="of each stream")
    add("--rows", type=positive, default=8, help="answers of a replica together")
    add("--quiet_s", type=above_zero, default=1.0, help="a quiet window, at least")
    add("--warm_up_s", type=above_zero, default=5.0, help="of the streams")
    add("--ready_timeout_s", type=above_zero, default=400.0, help="until Serve must be ready")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        measured = asyncio.run(_measure(args, Path(scratch)))
    about = conditions(args, before)
    parts = ("add_s", "patch_s", "delete_s", "others", "targets")
    shown = [(part, measured[part]) for part in parts]
    publish("hot_add", arguments, about | measured, out=args.out, lines=shown)
    return 0


async def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from scripts.benchmarks.live_adapters.hot_add_service import cpu_threads, prepare

    service = prepare(args, folder)

    def operator(session: aiohttp.ClientSession, url: str) -> Operator:
        return Operator(session, url, service.user, service.admin, args.replicas)

    async with serving(
        folder,
        [service.application],
        lambda session, url: operator(session, url).is_ready(),
        ready_timeout_s=args.ready_timeout_s,
    ) as (session, url, _):
        return {
            "cpu_threads": cpu_threads(args) if args.device == "cpu" else None,
            "served": await operator(session, url).served(),
            "adapter": service.adapter,
            **await measure_under_load(args, service.sources, operator(session, url)),
        }


async def measure_under_load(
    args: argparse.Namespace, folders: Sequence[Path], operator: Operator
) -> dict[str, Any]:
    """Add `folders` while streams run: the first `--adds` as versions, the rest as new adapters."""
    name, *others = (f"a{number}" for number in range(args.adapters))
    windows: Windows = {"adding": [], "quiet": [], "changing": []}
    sources = [str(folder) for folder in folders]
    new_versions, new_names = sources[: args.adds], sources[args.adds :]
    async with streaming(
        operator.url, operator.user, others, num=args.streams, max_tokens=args.output_tokens
    ) as streamed:
        await asyncio.sleep(args.warm_up_s)
        checked = await _add_versions(args, operator, name, new_versions, windows)
        times = await _other_changes(operator, name, new_names, windows)
    adding = [stop - start for start, stop in windows["adding"]]
    found = others_report(streamed, windows, args.streams)
    return {
        "add_s": spread(adding),
        "each_add_s": [round(seconds, 3) for seconds in adding],
        "answers_checked": checked,
        "others": found,
        **{kind: spread(seconds) for kind, seconds in times.items()},
        "targets": {
            "add_s": {"most": MAX_ADD_S, "is": round(max(adding), 3)},
            "rise": {"most": MAX_RISE, "is": found["rise"]},
            "failed": {"most": 0, "is": found["failed"]},
        },
    }


async def _add_versions(
    args: argparse.Namespace,
    operator: Operator,
    name: str,
    sources: Sequence[str],
    windows: Windows,
) -> int:
    """Return how many answers named the new version right after its add.

    Raises:
        LoadError: a change failed, or an answer named another version.
    """
    checked = 0
    for number, source in enumerate(sources):
        body = {"name": name, "version": f"v{number}", "source": source}
        windows["adding"].append(await operator.change("POST", "", 201, **body))
        checked += await operator.check_version(name, f"v{number}")
        await asyncio.sleep(_SETTLE_S)
        started, stopped = windows["adding"][-1]
        windows["quiet"].append(await _quiet(max(args.quiet_s, stopped - started)))
    return checked


async def _quiet(seconds: float) -> Window:
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    return started, time.perf_counter()


async def _other_changes(
    operator: Operator, name: str, sources: Sequence[str], windows: Windows
) -> dict[str, list[float]]:
    """Time a new adapter, PATCH to the version before and back, and DELETE, in seconds."""
    newest, before = await operator.versions(name)
    times: dict[str, list[float]] = {"add_new_name_s": [], "patch_s": [], "delete_s": []}

    async def timed(kind: str, method: str, path: str, status: int, **body: Any) -> None:
        window = await operator.change(method, path, status, **body)
        windows["changing"].append(window)
        times[kind].append(window[1] - window[0])

    for number, source in enumerate(sources):
        new = f"n{number}"
        body = {"name": new, "specialty": new, "version": "1", "source": source}
        await timed("add_new_name_s", "POST", "", 201, **body)
        await operator.check_version(new, "1")
        for version in (before, newest):
            await timed("patch_s", "PATCH", f"/{name}", 200, version=version)
            await operator.check_version(name, version)
        await timed("delete_s", "DELETE", f"/{new}", 200)
    return times


def others_report(streamed: Streamed, windows: Windows, rows: int) -> dict[str, Any]:
    """Return what the streams noticed; `rises` compares each add with the quiet window after it."""
    per_token = {
        kind: per_token_ms(streamed.tokens, found, rows) for kind, found in windows.items()
    }
    pairs = [
        (per_token_ms(streamed.tokens, [add], rows), per_token_ms(streamed.tokens, [quiet], rows))
        for add, quiet in zip(windows["adding"], windows["quiet"], strict=True)
    ]
    gaps = {kind: longest_gap_s(streamed.answers, found) for kind, found in windows.items()}
    return {
        "answers": len(streamed.answers),
        "tokens": len(streamed.tokens),
        "failed": len(streamed.failures),
        "failures": streamed.failures[:5],
        "window_s": {
            kind: round(sum(stop - start for start, stop in found), 2)
            for kind, found in windows.items()
        },
        "ms_per_token": {kind: round(value, 3) for kind, value in per_token.items()},
        "rise": round(per_token["adding"] / per_token["quiet"] - 1, 3),
        "rises": [round(adding / quiet - 1, 3) for adding, quiet in pairs],
        "longest_gap_ms": {kind: round(gap * 1000, 1) for kind, gap in gaps.items()},
    }
