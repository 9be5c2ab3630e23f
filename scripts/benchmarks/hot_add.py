"""New versions of an adapter on several model replicas, and what other answers notice of them.

    python -m scripts.benchmark hot_add --dtype float32 --out docs/benchmarks/hot_add_http_cpu.json
    python -m scripts.benchmark hot_add --model llama-1b-shape --device cuda --streams 16 --rows 16

Over HTTP only, on a Ray Serve of its own on loopback, with API keys. POST /v1/adapters adds a
version from a local folder `--adds` times; its seconds end with the reply, in which every replica
has confirmed, and answers that are asked for then must name the version. PATCH (to the version
before and back) and DELETE follow. Meanwhile `--streams` answers of other adapters run: their time
per token during the adds is compared with that of quiet windows as long in between.

On the CPU the replicas share its cores, which the application does not do by itself. On GPUs each
replica has one, so there must be `--replicas` of them. Needed are ray[serve], torch, transformers,
peft, tokenizers, safetensors, pydantic, pyyaml, numpy, fsspec and platformdirs; onnxruntime if the
router is to have its own encoder; gguf only to make the built-in base model. The last line of
stdout is one JSON object.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.hot_add_clinic import HotAddClinic, cpu_threads, names_of, prepare
from scripts.benchmarks.hot_add_operator import Operator, is_ready
from scripts.benchmarks.serve_process import serving
from scripts.benchmarks.streams import Streamed, streaming
from scripts.benchmarks.token_times import Window, longest_gap_s, per_token_ms, spread
from scripts.environment import device_name, environment, save_report

MAX_ADD_S = 3.0
MAX_RISE = 0.1
_SETTLE_S = 0.5  # between the answers that check an add and the quiet window

Windows = dict[str, list[Window]]


def run(args: argparse.Namespace, argv: Sequence[str] | None = None) -> int:
    arguments = list(argv if argv is not None else sys.argv[1:])
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        measured = _measure(args, Path(scratch))
    report = {
        "what": "hot_add",
        **environment(),
        "command": "python -m scripts.benchmark " + " ".join(arguments),
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "what")},
        "device": device_name(args.device),
        "cpu_threads": cpu_threads(args) if args.device == "cpu" else None,
        "load_average": {"before": before, "after": os.getloadavg()},
        **measured,
    }
    save_report(report, args.out)
    for part in ("add_s", "patch_s", "delete_s", "others", "targets"):
        print(f"{part:<9} {json.dumps(report[part])}")
    print(json.dumps(report))
    return 0


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    clinic = prepare(args, folder)
    with serving(
        folder,
        [clinic.application],
        lambda url: is_ready(url, clinic.admin, args.replicas),
        ready_timeout_s=args.ready_timeout_s,
    ) as (url, _):
        operator = Operator(url, clinic.user, clinic.admin, args.replicas)
        return {
            "served": operator.served(),
            "router_encoder": clinic.router_encoder,
            "adapter": clinic.adapter,
            **asyncio.run(measure_under_load(args, clinic, operator)),
        }


async def measure_under_load(
    args: argparse.Namespace, clinic: HotAddClinic, operator: Operator
) -> dict[str, Any]:
    name, others = names_of(args.adapters)
    windows: Windows = {"adding": [], "quiet": [], "changing": []}
    sources = [str(source) for source in clinic.sources]
    new_versions, new_names = sources[: args.adds], sources[args.adds :]
    async with streaming(
        operator.url, clinic.user, others, num=args.streams, max_tokens=args.output_tokens
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
    """How many answers named the new version right after an add; another one raises."""
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
    """Seconds of a new adapter, of PATCH to the version before and back, and of DELETE."""
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
    """What the streams noticed. `rises`: of each add, against the quiet window after it."""
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
