"""What the front door costs on top of Ray's own no-op chain, in one run.

    python -m scripts.benchmark gateway --out docs/benchmarks/gateway_default.json
    python -m scripts.benchmark gateway --mode fast --out docs/benchmarks/gateway_fast.json

Sides: `chain` (a Starlette router that reads the body and calls a model deployment that returns a
word), `gateway` (this application with an API key, limits, validation and an explicit specialty;
the model replica is ours with its engine, and a decoder that does no work), `classified` (the same,
with the router's classification). All on one Ray Serve, in turn, `--rounds` times; the client is on
the same cores. `fast` needs root: Ray's HAProxy opens ports on all interfaces, so that run is made
in a private network namespace. The last line of stdout is one JSON object.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deployments.api.api_keys import KeyStore, new_key
from scripts.benchmarks.load_client import Target, Timed, run_count, run_for
from scripts.benchmarks.serve_process import in_private_network, post_works, serving
from scripts.environment import environment, save_report

QUESTION = "My heart sometimes races for a minute when I climb the stairs, is that dangerous?"
WARM_UP = 50
MAX_ADDED_MS = 3.0
MIN_KEPT = 0.6
# So high that the limiter works on every request and refuses none.
_REQUESTS_PER_MINUTE, _TOKENS_PER_MINUTE = 1_000_000, 1_000_000_000

Rounds = dict[str, list[tuple[Timed, Timed]]]
"""Side -> (one after the other, at full load) of each round."""


def run(args: argparse.Namespace, argv: Sequence[str] | None = None) -> int:
    arguments = list(argv if argv is not None else sys.argv[1:])
    if args.mode == "fast":
        status = in_private_network("scripts.benchmark", arguments)
        if status is not None:
            return status
    report = {
        "what": "gateway",
        **environment(),
        "command": "python -m scripts.benchmark " + " ".join(arguments),
        "mode": args.mode,
        **_measure(args),
    }
    save_report(report, args.out)
    for name, side in report["sides"].items():
        print(f"{name:<12} {json.dumps(side)}")
    print(f"{'targets':<12} {json.dumps(report['targets'])}")
    print(json.dumps(report))
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        headers = _key_header(folder)
        with serving(
            folder,
            _applications(folder),
            lambda url: all(
                post_works(f"{url}/{name}/ask", json.dumps(_body()).encode(), headers)
                for name in ("chain", "clinic")
            ),
            fast=args.mode == "fast",
        ) as (url, _):
            targets = [
                Target.post("chain", f"{url}/chain/ask", _body(), headers),
                Target.post("gateway", f"{url}/clinic/ask", _body(), headers),
                Target.post("classified", f"{url}/clinic/ask", _body(specialty=False), headers),
            ]
            rounds = asyncio.run(_rounds(targets, args))
    return {
        "rounds": args.rounds,
        "num_warmups": WARM_UP,
        "concurrency": args.concurrency,
        "seconds_at_full_load": args.seconds,
        **summary(rounds),
    }


def _key_header(folder: Path) -> dict[str, str]:
    key, record = new_key(
        "user", requests_per_minute=_REQUESTS_PER_MINUTE, tokens_per_minute=_TOKENS_PER_MINUTE
    )
    KeyStore(folder / "state").change(lambda records: [record])
    return {"authorization": f"Bearer {key}"}


def _body(*, specialty: bool = True) -> dict[str, Any]:
    body: dict[str, Any] = {"question": QUESTION, "max_tokens": 1}
    return {**body, "specialty": "cardiology"} if specialty else body


def _applications(folder: Path) -> list[dict[str, Any]]:
    module = "scripts.benchmarks.stand_in_model"
    args = {"device": "cpu", "auth": {"mode": "keys"}, "state_dir": str(folder / "state")}
    return [
        {
            "name": "chain",
            "route_prefix": "/chain",
            "import_path": f"{module}:build_chain",
            "args": {"max_ongoing": 32},  # what the clinic's 16 rows amount to
        },
        {
            "name": "clinic",
            "route_prefix": "/clinic",
            "import_path": f"{module}:build_clinic",
            "args": args,
        },
    ]


async def _rounds(targets: Sequence[Target], args: argparse.Namespace) -> Rounds:
    for target in targets:
        await run_count(target, WARM_UP)
        await run_for(target, args.concurrency, 1.0)
    rounds: Rounds = {target.name: [] for target in targets}
    for _ in range(args.rounds):
        for target in targets:
            alone = await run_count(target, args.requests)
            rounds[target.name].append(
                (alone, await run_for(target, args.concurrency, args.seconds))
            )
    return rounds


def summary(rounds: Rounds) -> dict[str, Any]:
    """Figures of each side, and against `chain` of the same round: medians over the rounds."""
    sides = {name: _side(found) for name, found in rounds.items()}
    chain = sides["chain"]
    compared = {}
    for name in rounds:
        if name == "chain":
            continue
        added = [
            mine - theirs
            for mine, theirs in zip(sides[name]["p50_ms"], chain["p50_ms"], strict=True)
        ]
        kept = [
            mine / theirs
            for mine, theirs in zip(
                sides[name]["requests_per_s"], chain["requests_per_s"], strict=True
            )
        ]
        compared[name] = {
            "added_p50_ms": round(statistics.median(added), 2),
            "added_p50_ms_range": [round(min(added), 2), round(max(added), 2)],
            "share_of_requests_kept": round(statistics.median(kept), 3),
            "share_range": [round(min(kept), 3), round(max(kept), 3)],
        }
    gateway = compared["gateway"]
    return {
        "sides": sides,
        "over_chain": compared,
        "targets": {
            "added_p50_ms": {"most": MAX_ADDED_MS, "is": gateway["added_p50_ms"]},
            "share_of_requests_kept": {"least": MIN_KEPT, "is": gateway["share_of_requests_kept"]},
        },
    }


def _side(found: Sequence[tuple[Timed, Timed]]) -> dict[str, list[float]]:
    return {
        "p50_ms": [_quantile_ms(alone, 0.5) for alone, _ in found],
        "p99_ms": [_quantile_ms(alone, 0.99) for alone, _ in found],
        "requests_per_s": [round(loaded.requests_per_s, 1) for _, loaded in found],
        "loaded_p50_ms": [_quantile_ms(loaded, 0.5) for _, loaded in found],
        "loaded_p99_ms": [_quantile_ms(loaded, 0.99) for _, loaded in found],
    }


def _quantile_ms(timed: Timed, share: float) -> float:
    ordered = sorted(timed.latencies_s)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 2)
