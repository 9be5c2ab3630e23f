"""Measure this application, llama.cpp's server and PEFT on the same CPU, in turn, in one run.

    python -m scripts.benchmark peers --streams 1 16 --output_tokens 64 --rounds 2

All serve the built-in base model with the same random adapters and get the same question, for
answers of exactly `--output_tokens` tokens. The two servers are asked over HTTP, by the same client
on the same cores, for one adapter after the other (`mixed`) and for the base model alone (`base`);
each is alone on the machine while it is asked. PEFT runs in process: `generate` on one batch of
mixed adapters, and on one request after the other with `set_adapter`. llama.cpp computes with the
4-bit weights that the base model is distributed with, and keeps no prompt from request to request,
as this application does not. Needs the extra `bench`.
"""

import argparse
import asyncio
import contextlib
import functools
import os
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from scripts.arguments import BASE_MODEL, above_zero, positive
from scripts.benchmarks import llama_cpp
from scripts.benchmarks.command import add_out, conditions, publish
from scripts.benchmarks.live_adapters.hot_add_operator import Operator
from scripts.benchmarks.over_http.closed_loop import WARM_UP_S, closed_loop, figures
from scripts.benchmarks.over_http.http_client import PreparedRequest, chat_body
from scripts.benchmarks.over_http.serve_process import serving
from scripts.benchmarks.serve import QUESTION

if TYPE_CHECKING:
    from scripts.benchmarks.live_adapters.hot_add_service import HotAddService

OURS, LLAMA_CPP, PEFT = "polyclinic", "llama.cpp", "PEFT"
MIXED, BASE = "mixed", "base"
_FIXED = {"model": BASE_MODEL, "device": "cpu", "replicas": 1, "targets": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--streams", type=positive, nargs="+", default=[1, 16], help="at once, one run for each")
    add("--output_tokens", type=positive, default=64, help="of each answer")
    add("--adapters", type=positive, default=8, help="that answer in turn")
    add("--rank", type=positive, default=8, help="of the adapters")
    add("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="ours and PEFT's")
    add("--threads", type=int, help="of torch in ours; default: our own choice")
    add("--seconds", type=above_zero, default=10.0, help="of each run")
    add("--rounds", type=positive, default=2, help="each server is started and asked so often")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    try:
        llama_cpp.check_installed()
    except llama_cpp.PeerMissing as error:
        print(error, file=sys.stderr)
        return 2
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        runs = asyncio.run(_measure(args, Path(scratch)))
        runs += _peft(args, Path(scratch))
    summary = _summary(runs)
    about = conditions(argparse.Namespace(**vars(args), **_FIXED), before)
    report = about | {"summary": summary, "runs": runs}
    publish("peers", arguments, report, out=args.out, lines=summary.items())
    return 0


async def _measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    from scripts.benchmarks.live_adapters.hot_add_service import prepare

    rows = {"rows": max(args.streams), "slots": args.adapters, "adds": 1, "changes": 1}
    service = prepare(argparse.Namespace(**vars(args), **_FIXED, **rows, megabytes=None), folder)
    gguf = llama_cpp.base_gguf(folder)
    names = [f"a{number}" for number in range(args.adapters)]
    folders = {name: folder / "seed" / "weights" / name for name in names}
    runs = []
    with ProcessPoolExecutor(1, get_context("spawn")) as client:
        for number in range(args.rounds):
            async with llama_cpp.serving(gguf, folders, max(args.streams)) as url:
                requests = {
                    MIXED: [_theirs(url, args, n) for n in range(args.adapters)],
                    BASE: [_theirs(url, args, None)],
                }
                runs += await _ask(args, client, LLAMA_CPP, number, requests)
            async with _ours(args, folder, service) as url:
                requests = {
                    MIXED: [_our_request(url, args, service, name) for name in names],
                    BASE: [_our_request(url, args, service, "base")],
                }
                runs += await _ask(args, client, OURS, number, requests)
    return runs


@contextlib.asynccontextmanager
async def _ours(
    args: argparse.Namespace, folder: Path, service: "HotAddService"
) -> AsyncIterator[str]:
    def is_ready(session: aiohttp.ClientSession, url: str) -> Any:
        return Operator(session, url, service.user, service.admin, 1).is_ready()

    async with serving(folder, [service.application], is_ready) as (_, url, _):
        yield url


def _our_request(
    url: str, args: argparse.Namespace, service: "HotAddService", model: str
) -> PreparedRequest:
    body = chat_body(QUESTION, args.output_tokens, model=model)
    body |= {"min_tokens": args.output_tokens}
    return PreparedRequest.post(model, f"{url}/v1/chat/completions", body, service.user)


def _theirs(url: str, args: argparse.Namespace, adapter: int | None) -> PreparedRequest:
    body = chat_body(QUESTION, args.output_tokens)
    lora = llama_cpp.lora_of(adapter, args.adapters)
    body |= {"ignore_eos": True, "cache_prompt": False, "lora": lora}
    return PreparedRequest.post(LLAMA_CPP, f"{url}/v1/chat/completions", body)


async def _ask(
    args: argparse.Namespace,
    client: ProcessPoolExecutor,
    side: str,
    number: int,
    requests: dict[str, list[PreparedRequest]],
) -> list[dict[str, Any]]:
    """Return the figures of one server for each number of streams, mixed and base alone."""
    ask = functools.partial(closed_loop, client, 1, keeps_alive=False)  # which llama.cpp's does not
    await ask(requests[MIXED], max(args.streams), WARM_UP_S)
    found = []
    for streams in args.streams:
        for kind, asked in requests.items():
            measured = await ask(asked, streams, args.seconds)
            about = {"side": side, "adapters": kind, "round": number}
            found.append(about | figures(streams, *measured))
    return found


def _peft(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return PEFT's figures: one batch for each number of streams, and one by one."""
    from deployments.engine.request import Request, SamplingParams
    from scripts.benchmarks.bases.models import load_base
    from scripts.benchmarks.in_process.peft_baseline import PeftBaseline

    base = load_base(BASE_MODEL, "cpu", args.dtype)
    names = [f"a{number}" for number in range(args.adapters)]
    folders = {name: folder / "seed" / "weights" / name for name in names}
    turns = [{"role": "user", "content": QUESTION}]
    prompt = base.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    sampling = SamplingParams(args.output_tokens)
    peft = PeftBaseline(base, folders, args.output_tokens)
    found = []
    for streams in args.streams:
        asked = [
            Request(f"r{n}", tuple(prompt), names[n % len(names)], sampling) for n in range(streams)
        ]
        for kind, generate in ((MIXED, peft.mixed), ("one by one", peft.sequential)):
            timed = generate(asked)
            about = {"side": PEFT, "adapters": kind, "round": 0, "streams": streams}
            found.append(about | {"tokens_per_s": round(timed["tokens_per_s"], 1)})
    return found


def _summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return "side, adapters, streams" -> median tokens a second of the rounds, and each; for the
    servers the median of the medians of the first token, in seconds."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for one in runs:
        grouped.setdefault(f"{one['side']}, {one['adapters']}, {one['streams']}", []).append(one)
    return {
        name: {
            "tokens_per_s": statistics.median(one["tokens_per_s"] for one in group),
            "each": [one["tokens_per_s"] for one in group],
        }
        | (
            {"first_token_s": statistics.median(one["first_token_s"]["median"] for one in group)}
            if "first_token_s" in group[0]
            else {}
        )
        for name, group in grouped.items()
    }
