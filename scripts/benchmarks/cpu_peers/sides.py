"""All sides of the comparison on one CPU, started once and idle while another is measured."""

import argparse
import asyncio
import contextlib
import functools
import math
import os
import statistics
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil

from deployments.startup.processes import ProcessTree
from scripts.arguments import BASE_MODEL
from scripts.benchmarks.cpu_peers import in_torch, llama_cpp
from scripts.benchmarks.cpu_peers.pairs import (
    BASE,
    LLAMA_CPP,
    MIXED,
    OURS,
    PEFT,
    Block,
    Calm,
    Condition,
)
from scripts.benchmarks.live_adapters.hot_add_operator import Operator
from scripts.benchmarks.over_http.closed_loop import closed_loop
from scripts.benchmarks.over_http.cpu_time import seconds_by_role
from scripts.benchmarks.over_http.http_client import PreparedRequest, chat_body
from scripts.benchmarks.over_http.serve_process import serving
from scripts.benchmarks.serve import QUESTION

if TYPE_CHECKING:
    from scripts.benchmarks.live_adapters.hot_add_service import HotAddService

FIXED = {"model": BASE_MODEL, "device": "cpu", "replicas": 1, "targets": None}
# Answers of each stream in a block. They are whole and all of them are timed, so that no edge of a
# window cuts any. Two of each of several streams: llama.cpp's second are faster than its first, as
# streams with the same adapter come together.
_OF_ONE, _OF_SEVERAL = 3, 2
# Time of guests is a part of user and nice (proc_stat(5)).
_STATES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


class Sides:
    """The two servers and the process with PEFT, all of them up."""

    def __init__(
        self,
        client: ProcessPoolExecutor,
        torch: ProcessPoolExecutor,
        tree: ProcessTree,
        requests: Mapping[tuple[str, str], Sequence[PreparedRequest]],
    ) -> None:
        self._client = client
        self._torch = torch
        self._requests = requests
        self._tree = tree
        self._began = time.monotonic()

    async def calm(self, wanted: Calm, limit_s: float) -> None:
        """Wait until the cores wait for each other as long as usual, at most `limit_s`."""
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if not wanted.is_long((await self._in_torch(in_torch.probe))[2]):
                return
            await asyncio.sleep(1.0)

    async def turn(self, conditions: Sequence[Condition]) -> list[Block]:
        """Measure one block after the other, and what the machine does meanwhile."""
        probe, blocks = await self._in_torch(in_torch.probe), []
        for condition in conditions:
            machine, taken = psutil.cpu_times(), self._taken_s()
            figures = await self.measure(condition)
            lost = lost_shares(machine, psutil.cpu_times(), self._taken_s() - taken)
            before, probe = probe, await self._in_torch(in_torch.probe)
            blocks.append(Block(condition, *figures, *lost, self._passed_s(), (before, probe)))
        return blocks

    def seconds_by_role(self) -> dict[str, float]:
        """Return the processor seconds of all sides, and of this process, so far."""
        return seconds_by_role([*self._tree.alive(), os.getpid()])

    async def measure(self, condition: Condition) -> tuple[float, float | None]:
        """Return tokens a second of one block, from the first request to the end of the last
        answer, and the median seconds to the first token; None for PEFT."""
        if condition.side == PEFT:
            kind, streams = condition.adapters, condition.streams
            return await self._in_torch(in_torch.block, kind, streams), None
        asked = self._requests[condition.side, condition.adapters]
        answers, _, _ = await closed_loop(
            self._client,
            1,
            asked,
            condition.streams,
            math.inf,
            keeps_alive=False,  # which llama.cpp's does not
            answers=_OF_ONE if condition.streams == 1 else _OF_SEVERAL,
        )
        seconds = max(a.ended_at for a in answers) - min(a.sent_at for a in answers)
        speed = sum(a.num_tokens for a in answers) / seconds
        return speed, statistics.median(a.first_token_s for a in answers)

    def _passed_s(self) -> float:
        return time.monotonic() - self._began

    def _taken_s(self) -> float:
        return sum(self.seconds_by_role().values())

    async def _in_torch(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._torch, work, *args)


@contextlib.asynccontextmanager
async def all_sides(args: argparse.Namespace, folder: Path) -> AsyncIterator[Sides]:
    """Start everything, and end it afterwards."""
    from scripts.benchmarks.live_adapters.hot_add_service import prepare

    rows = {"rows": max(args.streams), "slots": args.adapters, "adds": 1, "changes": 1}
    known = argparse.Namespace(**vars(args), **FIXED, **rows, megabytes=None)
    service = prepare(known, folder)
    gguf = llama_cpp.base_gguf(folder)
    folders = {name: folder / "seed" / "weights" / name for name in _names(args)}

    def is_ready(session: aiohttp.ClientSession, url: str) -> Any:
        return Operator(session, url, service.user, service.admin, 1).is_ready()

    spawn = get_context("spawn")
    load = functools.partial(in_torch.load, args.dtype, folders, QUESTION, args.output_tokens)
    async with (
        llama_cpp.serving(gguf, folders, max(args.streams)) as theirs,
        serving(folder, [service.application], is_ready) as (_, ours, tree),
    ):
        with (
            ProcessPoolExecutor(1, spawn) as client,
            ProcessPoolExecutor(1, spawn, initializer=load) as torch,
        ):
            yield Sides(client, torch, tree, _requests(args, service, ours, theirs))


def lost_shares(before: Any, after: Any, taken_s: float) -> tuple[float, float]:
    """Return the shares of all cores that other guests and other processes took between two
    `psutil.cpu_times()`, of which the benchmark's own processes took `taken_s`."""
    passed = {name: getattr(after, name) - getattr(before, name) for name in after._fields}
    whole = sum(passed[name] for name in _STATES)
    busy = whole - passed["idle"] - passed["iowait"] - passed["steal"]
    return passed["steal"] / whole, max(0.0, busy - taken_s) / whole


def _names(args: argparse.Namespace) -> list[str]:
    return [f"a{number}" for number in range(args.adapters)]


def _requests(
    args: argparse.Namespace, service: "HotAddService", ours: str, theirs: str
) -> dict[tuple[str, str], list[PreparedRequest]]:
    return {
        (OURS, MIXED): [_to_ours(ours, args, service, name) for name in _names(args)],
        (OURS, BASE): [_to_ours(ours, args, service, "base")],
        (LLAMA_CPP, MIXED): [_to_theirs(theirs, args, n) for n in range(args.adapters)],
        (LLAMA_CPP, BASE): [_to_theirs(theirs, args, None)],
    }


def _to_ours(
    url: str, args: argparse.Namespace, service: "HotAddService", model: str
) -> PreparedRequest:
    body = chat_body(QUESTION, args.output_tokens, model=model)
    body |= {"min_tokens": args.output_tokens}
    return PreparedRequest.post(model, f"{url}/v1/chat/completions", body, service.user)


def _to_theirs(url: str, args: argparse.Namespace, adapter: int | None) -> PreparedRequest:
    body = chat_body(QUESTION, args.output_tokens)
    lora = llama_cpp.lora_of(adapter, args.adapters)
    body |= {"ignore_eos": True, "cache_prompt": False, "lora": lora}
    return PreparedRequest.post(LLAMA_CPP, f"{url}/v1/chat/completions", body)
