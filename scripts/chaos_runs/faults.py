"""Break one thing of a running clinic: a process, its configuration, or its state."""

import asyncio
import contextlib
import copy
import json
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from deployments.startup.live_settings import apply_config
from deployments.startup.processes import ProcessTree
from deployments.startup.status import addresses_of

_TITLES = {
    "model": "ray::ServeReplica:clinic:Model",
    "router": "ray::ServeReplica:clinic:Router",
    "proxy": "ray::ProxyActor",
    "controller": "ray::ServeController",
}
_HANG_S = 12.0
_REPLACED_S = 30.0
_APPLY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a fault may cost, as shares of the requests sent; `lost`, `doubled` and `wrong`
    are never allowed."""

    failed: float = 0.0  # failed, bare, cut and unreached together
    refused: float = 0.0
    min_refused: int = 0  # requests: fewer, and the run has not done what it is for


# Measured on two busy cores; the shares of a longer run are smaller.
LIMITS = {
    "none": Limits(),
    "model": Limits(failed=0.02, refused=0.01),
    "router": Limits(failed=0.05),
    "controller": Limits(),
    "hang": Limits(failed=0.05, refused=0.10),
    "freeze": Limits(failed=0.05, refused=0.10),
    "state": Limits(failed=0.02, refused=0.01),
    "upgrade": Limits(failed=0.02, refused=0.50),
    "typo": Limits(),
    "versions": Limits(),
    "overload": Limits(refused=1.0, min_refused=10),
    "proxy": Limits(failed=1.0),
}


class Breaker:
    """
    Args:
        content: what serve.yaml holds.
        state: the folder of the live state.
    """

    def __init__(
        self,
        tree: ProcessTree,
        content: dict[str, Any],
        dashboard: str,
        state: Path,
        rng: random.Random,
    ) -> None:
        self._tree = tree
        self._content = content
        self._dashboard = dashboard
        self._state = state
        self._rng = rng

    async def run(self, fault: str) -> str:
        """Break it, and mend what does not mend itself; returns what was done."""
        if fault in _TITLES:
            return self._signal(fault, signal.SIGKILL)
        if fault == "hang":
            return await self._hang()
        if fault == "freeze":
            return await self._freeze()
        if fault == "state":
            return await self._hide_state()
        if fault in ("upgrade", "typo"):
            return await asyncio.to_thread(self._deploy, fault)
        return "nothing"

    def pids(self, kind: str) -> list[int]:
        """Return the processes of a kind that run now."""
        found = []
        for pid in self._tree.alive():
            with contextlib.suppress(psutil.Error):
                # The title of a process that is at work ends in the method's name.
                if " ".join(psutil.Process(pid).cmdline()[:1]).startswith(_TITLES[kind]):
                    found.append(pid)
        return found

    def _signal(self, kind: str, number: signal.Signals) -> str:
        pids = self.pids(kind)
        if not pids:
            return f"no {kind} is running"
        victim = self._rng.choice(pids)
        os.kill(victim, number)
        return f"{number.name} to {kind} {victim}, one of {len(pids)}"

    async def _hang(self) -> str:
        victim = self._rng.choice(self.pids("model"))
        os.kill(victim, signal.SIGSTOP)
        try:
            await asyncio.sleep(_HANG_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGCONT)
        return f"model {victim} stood still for {_HANG_S:g} s"

    async def _freeze(self) -> str:
        """Stop a model replica for good, until it is gone and Serve has begun another one. Where a
        decoder stands in for the engine, whose process would kill it, it is killed here."""
        before = set(self.pids("model"))
        victim = self._rng.choice(sorted(before))
        os.kill(victim, signal.SIGSTOP)
        started = time.monotonic()
        gone_s = begun_s = None
        try:
            while gone_s is None or begun_s is None:
                now, passed_s = set(self.pids("model")), time.monotonic() - started
                if gone_s is None and victim not in now:
                    gone_s = passed_s
                if begun_s is None and now - before:
                    begun_s = passed_s
                if passed_s > _REPLACED_S:
                    return f"failed: model {victim}: gone {gone_s}, another {begun_s} (s)"
                await asyncio.sleep(0.2)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        return f"model {victim} was stopped, gone {gone_s:.1f} s later, another {begun_s:.1f} s"

    async def _hide_state(self) -> str:
        """Take the state away, and kill a model replica, which has to start without it."""
        away = self._state.with_name("away")
        self._state.rename(away)
        try:
            done = self._signal("model", signal.SIGKILL)
            await asyncio.sleep(_HANG_S)
        finally:
            if not self._state.exists():
                away.rename(self._state)
        return f"no state for {_HANG_S:g} s; {done}"

    def _deploy(self, fault: str) -> str:
        content = copy.deepcopy(self._content)
        args = content["applications"][0]["args"]
        if fault == "typo":
            args["base_model"] += "x"
        else:
            args["engine"]["default_output_tokens"] += 1
            self._content = content
        addresses = addresses_of(content, self._dashboard)
        try:
            apply_config(content, addresses, timeout_s=_APPLY_TIMEOUT_S)
        except Exception as error:
            if fault == "upgrade":
                raise
            apply_config(self._content, addresses, timeout_s=_APPLY_TIMEOUT_S)
            return f"refused, as it must be: {str(error).splitlines()[-1][:120]}"
        return "a changed configuration was deployed"


async def come_and_go(session: aiohttp.ClientSession, url: str, source: Path, number: int) -> str:
    """Add a version of an adapter that nobody else asks for, ask it, and remove it again.

    Args:
        source: its folder; the version's own content is written there.

    Raises:
        RuntimeError: one of the three calls had not the status that it should have.
    """
    config = source / "adapter_config.json"
    content = json.loads(await asyncio.to_thread(config.read_text))
    await asyncio.to_thread(config.write_text, json.dumps(content | {"revision": str(number)}))
    about = {"name": "passing", "specialty": "passing", "source": str(source)}
    chat = {"model": "passing", "messages": [{"role": "user", "content": "w7"}], "max_tokens": 4}
    for method, path, body, wanted in (
        ("POST", "/v1/adapters", about | {"version": str(number)}, 201),
        ("POST", "/v1/chat/completions", chat, 200),
        ("DELETE", "/v1/adapters/passing", None, 200),
    ):
        async with session.request(method, url + path, json=body) as reply:
            if reply.status != wanted:
                raise RuntimeError(f"{method} {path}: {reply.status} {(await reply.text())[:200]}")
    return f"version {number} came and went"
