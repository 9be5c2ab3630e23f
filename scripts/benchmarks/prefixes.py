"""Measure what it saves that rows keep the prefixes that they have read, in process.

    python -m scripts.benchmark prefixes --weights auto --out docs/benchmarks/prefixes_2_cores.json

`kept`: the second turn of a conversation goes on in its first turn's row. `copied`: another prompt
shares only its beginning, which is copied to another row. Both: seconds to the first token of a
prompt of `--history` common tokens and `--own` further ones, as the next request of one tenant, and
as that of another tenant, who shares nothing. `streams`: that many prompts at once that share their
first `--shared` tokens, of one tenant and each of its own; seconds until all have their first
token. One random adapter; no prompt comes twice.
"""

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmarks.command import add_model_arguments, conditions, publish

if TYPE_CHECKING:
    from deployments.engine.engine import Engine
    from deployments.engine.request import Request


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--weights", choices=["none", "auto", "int8"], default="none", help="on a CPU")
    add("--prefill_tokens", type=int, default=256, help="prompt tokens of a step")
    add("--history", type=int, nargs="+", default=[16, 64, 250, 1000], help="common tokens")
    add("--own", type=int, default=24, help="tokens of a prompt behind the common ones")
    add("--shared", type=int, default=500, help="common tokens of all streams")
    add("--streams", type=int, default=64, help="prompts at once")
    add("--rows", type=int, default=16, help="answers of one batch")
    add("--repeats", type=int, default=5, help="the median counts")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        engine, vocab_size = _engine(args, Path(scratch))
    random_ids = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [random_ids.randrange(3, vocab_size) for _ in range(count)]

    first_tokens = [
        _first_token(engine, args, tokens, length, is_kept=is_kept)
        for length in args.history
        for is_kept in (True, False)
    ]
    streams = _streams(engine, args, tokens)
    measured = {
        **conditions(args, load_before),
        "weights": engine.info.weights,
        "first_token": first_tokens,
        "streams": streams,
    }
    engine.close()
    lines = [*(("first token", each) for each in first_tokens), ("streams", streams)]
    publish("prefixes", arguments, measured, out=args.out, lines=lines)
    return 0


def _engine(args: argparse.Namespace, scratch: Path) -> "tuple[Engine, int]":
    from deployments.engine.decoder_factory import FastLimits
    from scripts.benchmarks.bases.models import load_base
    from scripts.benchmarks.in_process.engine_runs import fast_decoder, make_resident, start_engine
    from scripts.benchmarks.in_process.random_adapters import make_random_adapters

    base = load_base(args.model, args.device, args.dtype)
    shape = {"rank": args.rank, "targets": args.targets}
    folders = make_random_adapters(base.model, scratch, num=1, **shape)
    longest = max(*args.history, args.shared) + 3 * args.own
    decoder = fast_decoder(base, FastLimits(args.rows, longest + 1, max_adapters=1), args.weights)
    make_resident(decoder, list(folders.values()), 1)
    queue = [_request(range(longest), "")] * args.streams
    engine = start_engine(decoder, queue, args.rows, args.prefill_tokens, reuses_prefixes=True)
    return engine, decoder.vocab_size


def _request(token_ids: Sequence[int], tenant: str) -> "Request":
    from deployments.engine.request import Request, SamplingParams

    return Request("r", tuple(token_ids), "a0", SamplingParams(1), tenant=tenant)


def _first_token(
    engine: "Engine",
    args: argparse.Namespace,
    tokens: Callable[[int], list[int]],
    length: int,
    *,
    is_kept: bool,
) -> dict[str, Any]:
    from scripts.benchmarks.in_process.engine_runs import seconds_to_answer

    seconds: dict[str, list[float]] = {"same": [], "other": []}
    for repeat in range(args.repeats + 1):
        for tenant, found in seconds.items():
            common = tokens(length)
            seconds_to_answer(
                engine, [_request(common + tokens(0 if is_kept else 2 * args.own), "same")]
            )
            took = seconds_to_answer(engine, [_request(common + tokens(args.own), tenant)])
            if repeat:
                found.append(took)
    return {
        "common_tokens": length,
        "row": "kept" if is_kept else "copied",
        **_compared(seconds["same"], seconds["other"]),
    }


def _streams(
    engine: "Engine", args: argparse.Namespace, tokens: Callable[[int], list[int]]
) -> dict[str, Any]:
    from scripts.benchmarks.in_process.engine_runs import seconds_to_answer

    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(max(1, args.repeats // 2)):
        for is_shared, found in seconds.items():
            common = tokens(args.shared)
            requests = [
                _request(common + tokens(args.own), "" if is_shared else str(number))
                for number in range(args.streams)
            ]
            found.append(seconds_to_answer(engine, requests))
    return {
        "num_streams": args.streams,
        "common_tokens": args.shared,
        **_compared(seconds[True], seconds[False]),
    }


def _compared(reused: Sequence[float], read: Sequence[float]) -> dict[str, float]:
    medians = statistics.median(reused), statistics.median(read)
    return {
        "n": len(reused),
        "reused_s": round(medians[0], 4),
        "read_s": round(medians[1], 4),
        "reused_over_read": round(medians[0] / medians[1], 3),
    }
