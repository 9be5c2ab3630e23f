"""Many streaming clients that read slowly, and what the others notice of them.

    python -m scripts.benchmark clients --readers 200 --out docs/benchmarks/slow_clients.json

On a Ray Serve of its own with a stand-in decoder (2 ms a step). Each round opens `--readers`
streams at once; every reader takes 1 kB a second, so that the answer waits for it and not it for
the answer. Once the engine has ended all of them and Serve has carried them to its proxy (until
then they cost what any streams cost), other clients ask for one short stream after the other:
their time to the first token, with all readers still reading, is compared with the same before the
readers came. Memory is the proportional set size of all processes of Serve, sampled after each
round; the first third of the rounds is the warm-up. The last line of stdout is one JSON object.
"""

import argparse
import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployments.startup.processes import ProcessTree
from deployments.startup.status import get_json
from scripts.benchmarks.load_client import Target
from scripts.benchmarks.serve_process import post_works, serving
from scripts.environment import environment, pss_mib, save_report

MAX_GROWTH_MIB_PER_100 = 1.0
MAX_FIRST_TOKEN_RATIO = 1.2
STEP_S = 0.002
MAX_TOKENS = 400
_WINDOW_BYTES = 4096
_BITE_BYTES = 256
_PAUSE_S = 0.25  # between two bites
_CARRIED_S = 2.0  # from the engine's last token to the last message in the proxy
_DONE = b"data: [DONE]"


def run(args: argparse.Namespace, argv: Sequence[str] | None = None) -> int:
    arguments = list(argv if argv is not None else sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        measured = _measure(args, Path(scratch))
    report = {
        "what": "clients",
        **environment(),
        "command": "python -m scripts.benchmark " + " ".join(arguments),
        "max_tokens": MAX_TOKENS,
        **measured,
    }
    save_report(report, args.out)
    print(json.dumps(report))
    return 0


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    application = {
        "name": "clinic",
        "route_prefix": "/",
        "import_path": "scripts.benchmarks.stand_in_model:build_clinic",
        "args": {
            "device": "cpu",
            "state_dir": str(folder),
            "step_s": STEP_S,
            "engine": {"max_rows": 256, "max_waiting": 1000},
        },
    }
    body = _body(2)
    with serving(
        folder,
        [application],
        lambda url: post_works(f"{url}/v1/chat/completions", json.dumps(body).encode(), {}),
    ) as (url, tree):
        return asyncio.run(_rounds(url, tree, args))


def _body(max_tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "a red rash"}]
    return {"model": "base", "messages": messages, "max_tokens": max_tokens, "stream": True}


async def _rounds(url: str, tree: ProcessTree, args: argparse.Namespace) -> dict[str, Any]:
    slow = Target.post("slow", f"{url}/v1/chat/completions", _body(MAX_TOKENS), {})
    probe = Target.post("probe", f"{url}/v1/chat/completions", _body(2), {})
    before = [await _first_token_s(probe) for _ in range(args.probes + 5)][5:]
    beside: list[float] = []
    failures: list[str] = []
    samples: list[float] = []
    still_reading: list[int] = []
    for _ in range(args.rounds):
        readers = [asyncio.create_task(_read_slowly(slow)) for _ in range(args.readers)]
        await _until_idle(url)
        await asyncio.sleep(_CARRIED_S)
        beside += [await _first_token_s(probe) for _ in range(args.probes)]
        still_reading.append(sum(not reader.done() for reader in readers))
        ended = await asyncio.gather(*readers, return_exceptions=True)
        failures += [str(end) or type(end).__name__ for end in ended if end is not None]
        await asyncio.sleep(2)
        tree.refresh()
        samples.append(round(pss_mib(tree.alive()), 2))
    late = samples[len(samples) // 3 :]
    counts = [args.readers * number for number in range(len(late))]
    growth = statistics.linear_regression(counts, late).slope * 100 if len(late) > 1 else None
    ratio = statistics.median(beside) / statistics.median(before)
    return {
        "readers": args.readers,
        "rounds": args.rounds,
        "num_failed": len(failures),
        "failures": failures[:5],
        "still_reading_after_the_probes": still_reading,
        "first_token_ms_before": _spread_ms(before),
        "first_token_ms_beside": _spread_ms(beside),
        "pss_mib_after_each_round": samples,
        "targets": {
            "num_failed": {"most": 0, "is": len(failures)},
            "growth_mib_per_100": {
                "most": MAX_GROWTH_MIB_PER_100,
                "is": None if growth is None else round(growth, 3),
            },
            "first_token_ratio": {"most": MAX_FIRST_TOKEN_RATIO, "is": round(ratio, 3)},
        },
    }


async def _until_idle(url: str) -> None:
    """Until every stream has reached the engine and ended there."""
    await asyncio.sleep(1)
    while True:
        report = await asyncio.to_thread(get_json, f"{url}/readyz")
        if report and (report["rows_running"], report["requests_waiting"]) == (0, 0):
            return
        await asyncio.sleep(0.2)


async def _read_slowly(target: Target) -> None:
    """Raises when the stream fails, or ends before its end."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW_BYTES)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_connect(connection, (target.host, target.port))
        await loop.sock_sendall(connection, target.request)
        content = b""
        while _DONE not in content:
            piece = await loop.sock_recv(connection, _BITE_BYTES)
            if not piece:
                raise RuntimeError(f"cut off after {len(content)} bytes")
            content += piece
            if len(content) <= 2 * _BITE_BYTES and b" 200 " not in content.split(b"\r\n", 1)[0]:
                raise RuntimeError(content[:200].decode(errors="replace"))
            await asyncio.sleep(_PAUSE_S)
    finally:
        connection.close()


async def _first_token_s(target: Target) -> float:
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(target.request)
        content = b""
        while b'"content": "a' not in content:
            piece = await reader.read(4096)
            if not piece:
                raise RuntimeError(f"no token came: {content[:200].decode(errors='replace')}")
            content += piece
        return time.perf_counter() - started
    finally:
        writer.close()


def _spread_ms(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered) * 1000, 2),
        "p90": round(ordered[int(0.9 * len(ordered))] * 1000, 2),
        "max": round(ordered[-1] * 1000, 2),
    }
