"""Measure the engine in process under requests that come and go.

    python -m scripts.benchmark load --pattern closed_loop --concurrency 32 64 128 ...
    python -m scripts.benchmark load --pattern uneven --concurrency 64 ...

`--concurrency` is the number of rows. `closed_loop`: that many requests at a time, the next one as
soon as one has ended. `uneven`: all requests wait from the start. Lengths are uniform between the
two `--prompt_tokens` and the two `--output_tokens`, and seeded; adapters take turns.

`occupancy_while_waiting` is the share of rows that got a token, over the steps at whose start
requests waited. `of_ideal_schedule` compares the number of steps with a schedule without any cost,
first come, first served: each row takes the next request in the step after its last token.
"""

import argparse
import asyncio
import heapq
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.command import add_model_arguments, publish, settings_of
from scripts.environment import device_name

_FILES = 8  # different adapters; more adapters are copies, each in its own slot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--adapters", type=int, default=8, help="on the device")
    add("--prefill_tokens", type=int, default=256, help="prompt tokens of a step")
    add("--repeats", type=int, default=3, help="of each run; the median counts")
    patterns = ["closed_loop", "uneven"]
    add("--pattern", choices=patterns, default="closed_loop", help="of arrival")
    add("--concurrency", type=int, nargs="+", default=[16], help="rows of each run")
    add("--requests", type=int, default=64, help="of each run")
    bounds: dict[str, Any] = {"type": int, "nargs": 2, "metavar": ("LEAST", "MOST")}
    add("--prompt_tokens", default=[20, 30], help="of a request", **bounds)
    add("--output_tokens", default=[64, 64], help="of a request", **bounds)
    add("--seed", type=int, default=0, help="of the lengths and tokens")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [_measure(args, rows, Path(scratch) / str(rows)) for rows in args.concurrency]
    measured = {"settings": settings_of(args), "device": device_name(args.device), "runs": runs}
    publish("load", arguments, measured, out=args.out, lines=(("run", line) for line in runs))
    return 0


def _measure(args: argparse.Namespace, rows: int, scratch: Path) -> dict[str, Any]:
    from scripts.benchmarks.in_process.engine_runs import (
        StepCounter,
        answer_all,
        random_requests,
        start_engine,
    )

    decoder = _decoder(args, rows, scratch)
    requests = random_requests(
        args.requests,
        decoder.vocab_size,
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        adapters=[f"a{number}" for number in range(args.adapters)],
        seed=args.seed,
    )
    counter = StepCounter(decoder)
    engine = counter.engine = start_engine(decoder, requests, rows, args.prefill_tokens)
    at_once = rows if args.pattern == "closed_loop" else len(requests)
    asyncio.run(answer_all(engine, requests[: 2 * rows], at_once))  # warm-up
    samples: list[dict[str, Any]] = []
    for _ in range(args.repeats):
        counter.steps.clear()
        started = time.perf_counter()
        times = asyncio.run(answer_all(engine, requests, at_once))
        first_tokens = [each.first_token_s for each in times if each.first_token_s is not None]
        seconds = time.perf_counter() - started
        lengths = [request.sampling.max_tokens for request in requests]
        samples.append(
            {
                "rows": rows,
                "requests": len(requests),
                "prompt_tokens": sum(len(request.prompt_ids) for request in requests),
                "output_tokens": sum(lengths),
                "seconds": round(seconds, 3),
                "tokens_per_s": round(sum(lengths) / seconds, 1),
                "first_token_p50_s": round(statistics.median(first_tokens), 4),
                **_schedule(lengths, rows, counter.steps),
            }
        )
    engine.close()
    middle = sorted(samples, key=lambda sample: sample["tokens_per_s"])[len(samples) // 2]
    return {**middle, "tokens_per_s_samples": [sample["tokens_per_s"] for sample in samples]}


def _decoder(args: argparse.Namespace, rows: int, scratch: Path) -> Any:
    from deployments.engine.decoder_factory import FastLimits
    from scripts.benchmarks.bases.models import load_base
    from scripts.benchmarks.in_process.engine_runs import fast_decoder, make_resident
    from scripts.benchmarks.in_process.random_adapters import make_random_adapters

    base = load_base(args.model, args.device, args.dtype)
    folders = make_random_adapters(
        base.model, scratch, num=min(_FILES, args.adapters), rank=args.rank, targets=args.targets
    )
    num_positions = args.prompt_tokens[1] + args.output_tokens[1]
    limits = FastLimits(rows, num_positions, max_adapters=args.adapters)
    decoder = fast_decoder(base, limits)
    make_resident(decoder, list(folders.values()), args.adapters)
    return decoder


def _schedule(
    lengths: Sequence[int], rows: int, steps: Sequence[tuple[int, bool]]
) -> dict[str, Any]:
    """Return how full the steps (rows served, whether requests waited) were."""
    crowded = [served for served, waited in steps if waited]
    return {
        "steps": len(steps),
        "occupancy": round(sum(lengths) / (rows * len(steps)), 4),
        "occupancy_while_waiting": round(sum(crowded) / (rows * len(crowded)), 4)
        if crowded
        else None,
        "of_ideal_schedule": round(_ideal_steps(lengths, rows) / len(steps), 4),
    }


def _ideal_steps(lengths: Sequence[int], rows: int) -> int:
    """Return the steps of a first-come, first-served schedule without any cost."""
    ends = [0] * rows
    for length in lengths:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return max(ends)
