"""Measure vLLM with LoRA on a GPU, on the requests of `benchmark engine` and `benchmark serve`.

    python -m scripts.benchmark vllm --model llama-1b-shape --rows 64 --parts http engine \\
        --site VLLM --out vllm.json

`--site` is a folder with vLLM and its dependencies, if this interpreter lacks them. The same random
base, adapters, prompts and lengths as ours, written to a scratch folder first. Parts: `http`, its
own server, asked by the same closed loop; `engine`, its asynchronous engine in process, streamed
with text: all requests at once, without adapters, one stream, and a closed loop of `--rows` over
four times as many requests; `gpu` and `gpu_base`, milliseconds of kernels for each step, with LoRA
and without, by torch's profiler, the engine in one process.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from scripts.arguments import above_zero, positive
from scripts.benchmarks.command import add_model_arguments, conditions, publish
from scripts.benchmarks.over_http.closed_loop import WARM_UP_S, closed_loop, figures
from scripts.benchmarks.over_http.http_client import PreparedRequest, chat_body
from scripts.benchmarks.serve import QUESTION
from scripts.benchmarks.vllm_peer.server import serving, vllm_environment

_PROFILED_TOKENS = 65


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, devices=["cuda"])
    parser.set_defaults(device="cuda")
    add = parser.add_argument
    add("--site", type=Path, help="folder with vLLM and what it imports")
    parts = ["http", "engine", "gpu", "gpu_base"]
    add("--parts", nargs="+", choices=parts, default=["http", "engine"], help="to measure")
    add("--streams", type=positive, nargs="+", default=[1, 64], help="over HTTP, one run for each")
    add("--seconds", type=above_zero, default=10.0, help="of each run over HTTP")
    add("--clients", type=positive, default=4, help="processes that ask over HTTP")
    add("--api_servers", type=positive, default=1, help="vLLM's --api-server-count")
    add("--adapters", type=positive, default=8, help="that answer in turn")
    add("--rows", type=positive, default=64, help="answers together")
    add("--requests", type=positive, default=64, help="at once, in process")
    add("--prompt_tokens", type=positive, default=64, help="a fifth more or less, in process")
    add("--output_tokens", type=positive, default=128, help="of each answer")
    add("--repeats", type=positive, default=3, help="of each side in process")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    before = os.getloadavg()
    # Its sampler of flashinfer compiles at the first use; answers are greedy.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base, adapters = _written(args, folder)
        for part in args.parts:
            if part == "http":
                measured[part] = asyncio.run(_over_http(args, base, adapters, folder / "log"))
            else:
                measured[part] = _in_process(args, base, adapters, folder, part)
            report = conditions(args, before) | measured
            del report["settings"]["site"]
            publish("vllm", arguments, report, out=args.out, lines=[(part, measured[part])])
    return 0


def _written(args: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Path]]:
    """Write base and adapters in a process of its own, whose GPU memory is free afterwards."""
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        return other.submit(_write, args, folder).result()


def _write(args: argparse.Namespace, folder: Path) -> tuple[Path, dict[str, Path]]:
    from scripts.benchmarks.bases.models import load_skeleton, save_base
    from scripts.benchmarks.in_process.random_adapters import make_random_adapters

    base = save_base(args.model, folder / "base", args.device, args.dtype)
    shape = {"num": args.adapters, "rank": args.rank, "targets": args.targets}
    return base, make_random_adapters(load_skeleton(base), folder / "adapters", **shape)


async def _over_http(
    args: argparse.Namespace, base: Path, adapters: Mapping[str, Path], log: Path
) -> dict[str, Any]:
    options = f"""--enable-lora --max-loras {len(adapters)} --max-lora-rank {max(8, args.rank)}
        --no-enable-prefix-caching --max-model-len {256 + args.output_tokens}
        --max-num-seqs {max(args.rows, *args.streams)} --max-num-batched-tokens 8192
        --dtype bfloat16 --gpu-memory-utilization 0.8 --disable-uvicorn-access-log
        --disable-log-stats --api-server-count {args.api_servers}""".split()
    runs = []
    async with serving(base, adapters, options, args.site, log) as (url, start_s):
        prepared = [
            PreparedRequest.post(
                name,
                f"{url}/v1/chat/completions",
                chat_body(QUESTION, args.output_tokens, model=name) | {"ignore_eos": True},
            )
            for name in adapters
        ]
        with ProcessPoolExecutor(args.clients, get_context("spawn")) as clients:
            await closed_loop(clients, args.clients, prepared, max(args.streams), WARM_UP_S)
            for num in args.streams:
                found = await closed_loop(clients, args.clients, prepared, num, args.seconds)
                runs.append(figures(num, *found))
    return {"start_s": round(start_s, 1), "options": " ".join(options), "runs": runs}


def _in_process(
    args: argparse.Namespace,
    base: Path,
    adapters: Mapping[str, Path],
    folder: Path,
    part: str,
) -> dict[str, Any]:
    profiles = part.startswith("gpu")
    work = {
        "base": str(base),
        "adapters": {} if part == "gpu_base" else {name: str(p) for name, p in adapters.items()},
        "rank": args.rank,
        "rows": args.rows,
        "positions": int(args.prompt_tokens * 1.2) + args.output_tokens + 8,
        "repeats": args.repeats,
        "sides": {"steps": _steps(args)} if profiles else _sides(args, base),
        "profile": "steps" if profiles else "",
    }
    if part == "gpu_base":
        work["sides"]["steps"]["requests"] = [
            (prompt, None, number) for prompt, _, number in work["sides"]["steps"]["requests"]
        ]
    given, out = folder / f"{part}.json", folder / f"{part}_out.json"
    given.write_text(json.dumps(work))
    environment = vllm_environment(args.site)
    if profiles:
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    command = [sys.executable, "-m", "scripts.benchmarks.vllm_peer.worker", str(given), str(out)]
    done = subprocess.run(command, env=environment, stdout=sys.stderr)
    found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    return found if done.returncode == 0 else {**found, "exit_code": done.returncode}


def _steps(args: argparse.Namespace) -> dict[str, Any]:
    """Return `--rows` requests of one length that begin and end together."""
    prompt = [3 + i % 97 for i in range(args.prompt_tokens)]
    rows = range(args.rows)
    tokens = min(_PROFILED_TOKENS, args.output_tokens)
    requests = [(prompt, f"a{row % args.adapters}", tokens) for row in rows]
    return {"at_once": args.rows, "requests": requests}


def _sides(args: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Return the requests of `benchmark engine`, and a closed loop over four times as many."""
    from scripts.benchmarks.in_process.engine_runs import random_requests

    vocab_size = json.loads((base / "config.json").read_text())["vocab_size"]
    alike: dict[str, Any] = {
        "prompt_tokens": (int(args.prompt_tokens * 0.8), int(args.prompt_tokens * 1.2)),
        "output_tokens": (args.output_tokens, args.output_tokens),
        "adapters": [f"a{number}" for number in range(args.adapters)],
    }
    at_once = random_requests(args.requests, vocab_size, **alike)
    many = random_requests(4 * args.rows, vocab_size, **alike)
    plain = [dataclasses.replace(request, adapter=None) for request in at_once]
    sides = {
        "mixed": (at_once, len(at_once)),
        "no_adapters": (plain, len(plain)),
        "one_stream": (at_once[:1], 1),
        "closed_loop": (many, args.rows),
    }
    return {
        name: {
            "at_once": number,
            "requests": [(r.prompt_ids, r.adapter, r.sampling.max_tokens) for r in requests],
        }
        for name, (requests, number) in sides.items()
    }
