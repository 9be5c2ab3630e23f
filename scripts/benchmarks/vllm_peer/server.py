"""vLLM's own HTTP server on loopback, in an interpreter that has vLLM."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import aiohttp

from deployments.settings import PROJECT_ROOT
from deployments.startup.cluster import free_port

_READY_TIMEOUT_S = 300.0


def vllm_environment(site: Path | None) -> dict[str, str]:
    """Return the environment of an interpreter that imports vLLM from `site`, or from its own
    packages."""
    paths = [str(site)] if site else []
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, str(PROJECT_ROOT)]),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextlib.asynccontextmanager
async def serving(
    base: Path, adapters: Mapping[str, Path], options: Sequence[str], site: Path | None, log: Path
) -> AsyncIterator[tuple[str, float]]:
    """Yield the base URL and the seconds of the start of a server with these adapters.

    Raises:
        RuntimeError: it ended, or was not ready in time; what it wrote last is in the message.
    """
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(base)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "base"]
    command += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    started = time.perf_counter()
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*command, *options],
            env=vllm_environment(site),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        await _wait_until_ready(child, url, log)
        yield url, time.perf_counter() - started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


async def _wait_until_ready(child: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    async with aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            if child.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-4000:]
                raise RuntimeError(f"vLLM is not ready (exit code {child.poll()}):\n{tail}")
            await asyncio.sleep(0.5)
