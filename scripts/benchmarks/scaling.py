"""Measure 1 -> 2 -> 1 model replicas under load, and the parts of the second one's start.

    python -m scripts.benchmark scaling --model llama-1b-shape --device cuda --dtype bfloat16 \\
        --rows 64 --streams 128 --out docs/benchmarks/scaling_2_h100.json
    python -m scripts.benchmark scaling --rows 2 --streams 8 --output_tokens 32

Over HTTP, on a private Ray Serve on loopback, with random adapters. `--streams` answers at a time
begin when one replica is ready; when the second one has answered for `--both_s`, one stream goes on
until Serve has taken a replica away. `asked_s`: from the first stream until Serve wanted a second
one. The rest follows on it: the process, the base, the adapters, the warm-up, Serve's own checks,
and the first question; `start_s` is all of it but `asked_s`. `first` is the first replica's start
and first answer, with nobody waiting. On the CPU both replicas share the cores. A wait that takes
longer than `--timeout_s` ends the run: the report says which, and has what was measured until then.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from deployments.startup.cluster import free_port
from deployments.startup.status import Addresses, application_states, describe_states
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
_STREAMS_PER_REPLICA = 8  # of all of them: HTTP holds some of them at any moment
T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, devices=["cpu", "cuda"])
    add = parser.add_argument
    add("--adapters", type=positive, default=8, help="in the catalogue")
    add("--rows", type=positive, default=64, help="answers of a replica together")
    add("--streams", type=positive, default=128, help="answers at a time, under load")
    add("--target", type=positive, help="model_replicas.target; default: --streams / 8, from 2")
    add("--routers", type=positive, default=1, help="replicas of the router")
    add("--output_tokens", type=positive, default=128, help="of each answer")
    add("--upscale_delay_s", type=above_zero, default=5.0, help="model_replicas.upscale_delay_s")
    add("--downscale_delay_s", type=above_zero, default=10.0, help="as above, downwards")
    add("--both_s", type=above_zero, default=10.0, help="of load on both replicas")
    add("--timeout_s", type=above_zero, default=150.0, help="of each wait")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    before = os.getloadavg()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        try:
            asyncio.run(_measure(args, Path(scratch), found))
        except (LoadError, RuntimeError) as error:
            found["stopped"] = str(error)
            print(f"scaling: {error}", file=sys.stderr)
    publish(
        "scaling", arguments, conditions(args, before) | found, out=args.out, lines=found.items()
    )
    return 1 if "stopped" in found or found["answers"]["failed"] else 0


async def _measure(args: argparse.Namespace, folder: Path, found: dict[str, Any]) -> None:
    """Put the figures of each part into `found`, as they come.

    Raises:
        LoadError, RuntimeError: something did not come in time.
    """
    from scripts.benchmarks.live_adapters.hot_add_service import prepare

    unused = {"adds": 1, "changes": 1, "slots": args.adapters, "megabytes": None, "replicas": 1}
    service = prepare(argparse.Namespace(**(vars(args) | unused)), folder)
    _scale(service.application, args)
    _say("prepared", args.model)
    names, port = [f"a{number}" for number in range(args.adapters)], free_port()
    waits = _Waits(args.timeout_s, Addresses("", f"http://127.0.0.1:{port}"))

    async def models(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
        return await Operator(session, url, service.user, service.admin, 2).models()

    async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
        return len(await models(session, url)) == 1 and await is_served(session, url)

    async with serving(
        folder, [service.application], is_ready, ready_timeout_s=args.timeout_s, dashboard_port=port
    ) as (session, url, _):
        first = (await models(session, url))[0]
        body, asked_at = chat_body(QUESTION, 1, model=names[0]), time.time()
        question = PreparedRequest.post("a0", f"{url}/v1/chat/completions", body, service.user)
        await waits.within("the first answer", read_stream(session, question))
        found["first"] = _first(first["start"], time.time() - asked_at)
        _say("first", found["first"])

        async def second() -> dict[str, Any] | None:
            others = (m for m in await models(session, url) if m["replica"] != first["replica"])
            return next(others, None)

        load = {"headers": service.user, "models": names, "max_tokens": args.output_tokens}
        async with streaming(url, num=args.streams, **load) as busy:
            began_at = time.time()
            await waits.until("that Serve wants a second replica", waits.wants_two)
            wanted_at = time.time()
            started = await waits.until("the second replica", second)
            seen_at = time.time()
            await waits.until("its first answer", lambda: _has_answered(second()))
            found["up"] = _up(started["start"], began_at, wanted_at, seen_at, time.time())
            _say("up", found["up"])
            await asyncio.sleep(args.both_s)
        async with streaming(url, num=1, **load) as light:
            light_at = time.time()

            async def is_alone() -> bool | None:
                return len(await models(session, url)) == 1 or None

            await waits.until("one replica again", is_alone)
            found["down"] = {"seconds": round(time.time() - light_at, 2)}
        found["answers"] = _answers(busy, light)


class _Waits:
    """Waits that end.

    Args:
        timeout_s: of each.
        serve: whose dashboard says what Serve was doing when a wait was over.
    """

    def __init__(self, timeout_s: float, serve: Addresses) -> None:
        self._timeout_s, self._serve = timeout_s, serve

    async def until(self, what: str, look: Callable[[], Awaitable[T | None]]) -> T:
        """Return the first thing that `look` finds.

        Raises:
            LoadError: there was none in time.
        """

        async def poll() -> T:
            while (found := await look()) is None:
                await asyncio.sleep(_POLL_S)
            return found

        return await self.within(what, poll())

    async def within(self, what: str, work: Awaitable[T]) -> T:
        """Return what `work` does.

        Raises:
            LoadError: it did not end in time.
        """
        try:
            return await asyncio.wait_for(work, self._timeout_s)
        except TimeoutError:
            states = await asyncio.to_thread(application_states, self._serve)
            doing = describe_states(states).replace("\n", "; ")
            raise LoadError(f"{what}: not within {self._timeout_s:g} s; {doing}") from None

    async def wants_two(self) -> bool | None:
        """Return whether Serve wants two model replicas, or None."""
        states = await asyncio.to_thread(application_states, self._serve)
        targets = [a["deployments"]["Model"]["target_num_replicas"] for a in states.values()]
        return targets == [2] or None


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
        "target": args.target or max(2, args.streams // _STREAMS_PER_REPLICA),
    }
    application["args"]["model_replicas"] = replicas
    application["args"]["router"] = {"replicas": args.routers}
    if args.device == "cpu":
        from deployments.app import autoscaling
        from deployments.setting_sections import ReplicaSettings

        options = {"num_cpus": 0.2, "num_gpus": 0}
        scaling = autoscaling(ReplicaSettings(**replicas), args.rows)
        section = {"name": "Model", "ray_actor_options": options, "autoscaling_config": scaling}
        application["deployments"] = [section]


async def _has_answered(looking: Awaitable[dict[str, Any] | None]) -> bool | None:
    model = await looking
    return (model is not None and model["adapter_hits"] + model["adapter_waits"] > 0) or None


def _first(start: dict[str, float], first_answer_s: float) -> dict[str, float]:
    """Return the parts of the first replica's start, and of its first answer, of one token."""
    parts = {part: start[part] for part in _PARTS}
    parts |= {"first_answer_s": first_answer_s}
    return {
        part: round(seconds, 2)
        for part, seconds in (parts | {"all_s": sum(parts.values())}).items()
    }


def _up(
    start: dict[str, float], began_at: float, wanted_at: float, seen_at: float, answered_at: float
) -> dict[str, float]:
    """Return the seconds from the first stream to the second replica's first question, in parts.

    `process_s`: from Serve's wish, or from the process's beginning if that was later, until it has
    imported what we need.
    """
    imported_at = start["began_at"] + start["process_s"]
    parts = {
        "asked_s": wanted_at - began_at,
        **{part: start[part] for part in _PARTS},
        "process_s": imported_at - wanted_at,
        "seen_s": seen_at - start["ready_at"],
        "first_question_s": answered_at - seen_at,
        "start_s": answered_at - wanted_at,
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
