"""Measure 1 -> 2 -> 1 model replicas under load, and the parts of the second one's start.

    python -m scripts.benchmark scaling --model llama-1b-shape --device cuda --dtype bfloat16 \\
        --rows 64 --streams 128 --out docs/benchmarks/scaling_2_h100.json
    python -m scripts.benchmark scaling --rows 2 --streams 8 --output_tokens 32

Over HTTP, on a private Ray Serve on loopback, with random adapters. `--streams` answers at a time
begin when one replica is ready; when the second one has answered for `--both_s`, one stream goes on
until Serve has taken a replica away. `asked_s`: from the first stream to Serve's decision. The rest
follows on it: the process, the base, the adapters, the warm-up, Serve's own checks, and the first
question; `start_s` is all of it but `asked_s`. `first` is the first replica's start and first
answer, with nobody waiting. On the CPU both replicas share the cores.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from scripts.arguments import above_zero, positive
from scripts.benchmarks.command import add_model_arguments, conditions, publish
from scripts.benchmarks.live_adapters.hot_add_operator import Operator
from scripts.benchmarks.over_http.http_client import (
    LoadError,
    PreparedRequest,
    chat_body,
    is_served,
    read_stream,
)
from scripts.benchmarks.over_http.serve_process import serving
from scripts.benchmarks.over_http.streams import QUESTION, Streamed, streaming

_POLL_S = 0.1
_PARTS = ("process_s", "base_s", "adapters_s", "warm_up_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, devices=["cpu", "cuda"])
    add = parser.add_argument
    add("--adapters", type=positive, default=8, help="in the catalogue")
    add("--rows", type=positive, default=64, help="answers of a replica together")
    add("--streams", type=positive, default=128, help="answers at a time, under load")
    add("--output_tokens", type=positive, default=128, help="of each answer")
    add("--upscale_delay_s", type=above_zero, default=5.0, help="model_replicas.upscale_delay_s")
    add("--downscale_delay_s", type=above_zero, default=10.0, help="as above, downwards")
    add("--both_s", type=above_zero, default=10.0, help="of load on both replicas")
    add("--timeout_s", type=above_zero, default=300.0, help="of each wait")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        measured = asyncio.run(_measure(args, Path(scratch)))
    about = conditions(args, before)
    shown = [(part, measured[part]) for part in ("first", "up", "down", "answers")]
    publish("scaling", arguments, about | measured, out=args.out, lines=shown)
    return 1 if measured["answers"]["failed"] else 0


async def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from scripts.benchmarks.live_adapters.hot_add_service import prepare

    unused = {"adds": 1, "changes": 1, "slots": args.adapters, "megabytes": None, "replicas": 1}
    service = prepare(argparse.Namespace(**(vars(args) | unused)), folder)
    _scale(service.application, args)
    names = [f"a{number}" for number in range(args.adapters)]

    def models(session: aiohttp.ClientSession, url: str) -> Awaitable[list[dict[str, Any]]]:
        return Operator(session, url, service.user, service.admin, 2).models()

    async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
        return len(await models(session, url)) == 1 and await is_served(session, url)

    async with serving(folder, [service.application], is_ready, ready_timeout_s=args.timeout_s) as (
        session,
        url,
        _,
    ):
        first = (await models(session, url))[0]
        load = {"headers": service.user, "models": names, "max_tokens": args.output_tokens}
        asked_at = time.time()
        question = chat_body(QUESTION, 1, model=names[0])
        await read_stream(
            session,
            PreparedRequest.post(names[0], f"{url}/v1/chat/completions", question, service.user),
        )
        begun = _first(first["start"], time.time() - asked_at)
        _say("first", begun)
        async with streaming(url, num=args.streams, **load) as busy:
            began_at = time.time()

            def second(found: list[dict[str, Any]]) -> dict[str, Any] | None:
                return next((m for m in found if m["replica"] != first["replica"]), None)

            started = await _until(args, lambda: models(session, url), second)
            seen_at = time.time()
            _say("second", started["start"])
            await _until(args, lambda: models(session, url), lambda f: _has_answered(second(f)))
            answered_at = time.time()
            up = _up(started["start"], began_at, seen_at, answered_at)
            _say("up", up)
            await asyncio.sleep(args.both_s)
        async with streaming(url, num=1, **load) as light:
            light_at = time.time()
            one = await _until(
                args, lambda: models(session, url), lambda f: f if len(f) == 1 else None
            )
        assert one
        return {
            "first": begun,
            "up": up,
            "down": {"seconds": round(time.time() - light_at, 2)},
            "answers": _answers(busy, light),
        }


def _say(part: str, found: Any) -> None:
    """Tell how far a run has come: it takes minutes."""
    print(part, found, file=sys.stderr, flush=True)


def _scale(application: dict[str, Any], args: argparse.Namespace) -> None:
    """Let Serve scale from 1 to 2. On the CPU the application keeps to one replica, and Serve's own
    section has the last word."""
    replicas = {
        "min": 1,
        "max": 2,
        "upscale_delay_s": args.upscale_delay_s,
        "downscale_delay_s": args.downscale_delay_s,
    }
    application["args"]["model_replicas"] = replicas
    if args.device == "cpu":
        from deployments.app import autoscaling
        from deployments.setting_sections import ReplicaSettings

        options = {"num_cpus": 0.2, "num_gpus": 0}
        scaling = autoscaling(ReplicaSettings(**replicas), args.rows)
        section = {"name": "Model", "ray_actor_options": options, "autoscaling_config": scaling}
        application["deployments"] = [section]


async def _until(
    args: argparse.Namespace,
    look: Callable[[], Awaitable[list[dict[str, Any]]]],
    wanted: Callable[[list[dict[str, Any]]], Any],
) -> Any:
    """Return the first thing that is `wanted` of what `look` finds.

    Raises:
        LoadError: there was none within --timeout_s.
    """
    deadline = time.monotonic() + args.timeout_s
    while time.monotonic() < deadline:
        found = wanted(await look())
        if found:
            return found
        await asyncio.sleep(_POLL_S)
    raise LoadError(f"nothing came of it within {args.timeout_s:g} s")


def _has_answered(model: dict[str, Any] | None) -> bool:
    return model is not None and model["adapter_hits"] + model["adapter_waits"] > 0


def _first(start: dict[str, float], first_answer_s: float) -> dict[str, float]:
    """Return the parts of the first replica's start, and of its first answer, of one token."""
    parts = {part: start[part] for part in _PARTS}
    parts |= {"first_answer_s": first_answer_s}
    return {
        part: round(seconds, 2)
        for part, seconds in (parts | {"all_s": sum(parts.values())}).items()
    }


def _up(
    start: dict[str, float], began_at: float, seen_at: float, answered_at: float
) -> dict[str, float]:
    """Return the seconds from the first stream to the second replica's first question, in parts.

    `process_s` is the time in which Ray's worker imports what we need; how long Ray takes to give
    one is part of `asked_s`.
    """
    parts = {
        "asked_s": start["began_at"] - began_at,
        **{part: start[part] for part in _PARTS},
        "seen_s": seen_at - start["ready_at"],
        "first_question_s": answered_at - seen_at,
        "start_s": answered_at - start["began_at"],
        "all_s": answered_at - began_at,
    }
    return {part: round(seconds, 2) for part, seconds in parts.items()}


def _answers(busy: Streamed, light: Streamed) -> dict[str, Any]:
    failures = [*busy.failures, *light.failures]
    return {
        "whole": len(busy.answers) + len(light.answers),
        "failed": len(failures),
        "failures": failures[:5],
    }
