"""Measure many streaming clients that read slowly, and what other clients notice of them.

    python -m scripts.benchmark clients --readers 200 --out docs/benchmarks/slow_clients.json

On a private Ray Serve with a stand-in decoder (2 ms a step). Each round opens `--readers` streams
at once; every reader takes 1 kB a second, so that the answer waits for the reader and never the
reader for the answer. Once the engine has ended all of them and Serve has carried them to its proxy
(until then they cost what any streams cost), other clients ask for one short stream after the
other: their time to the first token, with all readers still reading, is compared with the same
before the readers came. Memory is the proportional set size of all processes of Serve, sampled
after each round; the first third of the rounds is the warm-up.
"""

import argparse
import asyncio
import socket
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from deployments.startup.processes import ProcessTree
from scripts.benchmarks.command import add_out, publish, spread
from scripts.benchmarks.over_http.http_client import (
    LoadError,
    PreparedRequest,
    call,
    chat_body,
    connect,
    read_stream,
    succeeds,
)
from scripts.benchmarks.over_http.serve_process import serving
from scripts.environment import pss_mib

MAX_GROWTH_MIB_PER_100 = 1.0
MAX_FIRST_TOKEN_RATIO = 1.2
STEP_S = 0.002
MAX_TOKENS = 400
_WINDOW_BYTES = 4096
_BITE_BYTES = 256
_PAUSE_S = 0.25  # between two bites
_CARRIED_S = 2.0  # from the engine's last token to the last message in the proxy
_SETTLED_S = 2.0  # from the last reader's end to the memory sample
_PROBE_WARM_UP = 5
_DONE = b"data: [DONE]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--readers", type=int, default=200, help="slow clients at the same time")
    parser.add_argument("--rounds", type=int, default=5, help="of all readers at once")
    parser.add_argument("--probes", type=int, default=40, help="first tokens timed, per round")
    add_out(parser)


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        measured = asyncio.run(_measure(args, Path(scratch)))
    publish("clients", arguments, {"max_tokens": MAX_TOKENS, **measured}, out=args.out)
    return 0


async def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    application = {
        "name": "clinic",
        "route_prefix": "/",
        "import_path": "scripts.benchmarks.over_http.stand_in_model:build_clinic",
        "args": {
            "device": "cpu",
            "state_dir": str(folder),
            "step_s": STEP_S,
            "engine": {"max_rows": 256, "max_waiting": 1000},
        },
    }

    async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
        return await succeeds(session, _chat(url, 2))

    async with serving(folder, [application], is_ready) as (session, url, tree):
        return await _rounds(session, url, tree, args)


def _chat(url: str, max_tokens: int) -> PreparedRequest:
    body = chat_body("a red rash", max_tokens, model="base")
    return PreparedRequest.post("chat", f"{url}/v1/chat/completions", body)


async def _rounds(
    session: aiohttp.ClientSession, url: str, tree: ProcessTree, args: argparse.Namespace
) -> dict[str, Any]:
    before = (await _first_tokens_s(session, url, args.probes + _PROBE_WARM_UP))[_PROBE_WARM_UP:]
    during: list[float] = []
    failures: list[str] = []
    samples: list[float] = []
    still_reading: list[int] = []
    async with connect(socket_factory=_small_window) as slow_session:
        for _ in range(args.rounds):
            readers = [
                asyncio.create_task(_read_slowly(slow_session, _chat(url, MAX_TOKENS)))
                for _ in range(args.readers)
            ]
            await _until_idle(session, url)
            await asyncio.sleep(_CARRIED_S)
            during += await _first_tokens_s(session, url, args.probes)
            still_reading.append(sum(not reader.done() for reader in readers))
            ended = await asyncio.gather(*readers, return_exceptions=True)
            failures += [str(end) or type(end).__name__ for end in ended if end is not None]
            await asyncio.sleep(_SETTLED_S)
            samples.append(round(pss_mib(tree.alive()), 2))
    ratio = statistics.median(during) / statistics.median(before)
    return {
        "readers": args.readers,
        "rounds": args.rounds,
        "num_failed": len(failures),
        "failures": failures[:5],
        "still_reading_after_the_probes": still_reading,
        "first_token_ms_before": spread((s * 1000 for s in before), 90, 2),
        "first_token_ms_beside": spread((s * 1000 for s in during), 90, 2),
        "pss_mib_after_each_round": samples,
        "targets": {
            "num_failed": {"most": 0, "is": len(failures)},
            "growth_mib_per_100": {
                "most": MAX_GROWTH_MIB_PER_100,
                "is": _growth_per_100(samples, args.readers),
            },
            "first_token_ratio": {"most": MAX_FIRST_TOKEN_RATIO, "is": round(ratio, 3)},
        },
    }


def _growth_per_100(samples: Sequence[float], readers: int) -> float | None:
    """Return MiB per 100 streams after the warm-up rounds, or None if one round is left."""
    late = samples[len(samples) // 3 :]
    if len(late) < 2:
        return None
    counts = [readers * number for number in range(len(late))]
    return round(statistics.linear_regression(counts, late).slope * 100, 3)


async def _until_idle(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until every stream has reached the engine and ended there."""
    await asyncio.sleep(1)
    while True:
        status, report = await call(session, "GET", f"{url}/readyz")
        if status == 200 and not (report["rows_running"] or report["requests_waiting"]):
            return
        await asyncio.sleep(0.2)


def _small_window(address: aiohttp.AddrInfoType) -> socket.socket:
    """Open a socket that the kernel buffers little for, so that the server feels the slow reader.

    The receive buffer is only effective if it is set before the connection is made.
    """
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW_BYTES)
    connection.setblocking(False)
    return connection


async def _read_slowly(session: aiohttp.ClientSession, request: PreparedRequest) -> None:
    """Read a stream in small bites, with pauses.

    Raises:
        LoadError: another status, or the end came before `[DONE]`.
    """
    async with session.post(
        request.url, data=request.body, headers=request.headers, read_bufsize=_BITE_BYTES
    ) as response:
        if response.status != 200:
            raise LoadError(f"status {response.status}")
        num_bytes, tail = 0, b""
        while _DONE not in tail:
            piece = await response.content.read(_BITE_BYTES)
            if not piece:
                raise LoadError(f"cut off after {num_bytes} bytes")
            num_bytes += len(piece)
            tail = tail[-len(_DONE) :] + piece
            await asyncio.sleep(_PAUSE_S)


async def _first_tokens_s(session: aiohttp.ClientSession, url: str, number: int) -> list[float]:
    """Return the seconds to the first token of `number` streams, one after the other."""
    answers = [await read_stream(session, _chat(url, 2)) for _ in range(number)]
    return [answer.first_token_s for answer in answers]
