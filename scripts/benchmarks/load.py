"""Measure the engine in process under requests that come and go.

    python -m scripts.benchmark load --pattern closed_loop --concurrency 32 64 128 ...
    python -m scripts.benchmark load --pattern uneven --concurrency 64 ...
    python -m scripts.benchmark load --adapters 1024 --asked 1 8 64 1024 \\
        --popularity one uniform zipf ...
    python -m scripts.benchmark load --rates 50 100 200 400 ...

`--concurrency` is the number of rows. `closed_loop`: that many requests at a time, the next one as
soon as one has ended. `uneven`: all requests wait from the start. Lengths are uniform between the
two `--prompt_tokens` and the two `--output_tokens`, and seeded. `--adapters` are on the device, of
which requests ask for the first `--asked`, one run for each number: in turn (`turns`), for one
alone (`one`), or at random, all alike (`uniform`) or by Zipf's law (s = 1, `zipf`).

With `--rates`, requests also come at random times (Poisson), so many a second for `--rate_s`,
whether others have ended or not. A rate holds if no request fails and the p95 of the first token is
at most `--first_token_p95_s`; `limits` says up to which rate each holds, and which is the first
that does not. Clocks start before a request is sent, and the reader of the answer reads them.

With `--long_prompt_tokens`, each closed run is followed by one beside which a prompt of so many
tokens, answered by one token, is read again and again. `beside_long` compares the time per token.

`occupancy_while_waiting` is the share of rows that got a token, over the steps at whose start
requests waited. `of_ideal_schedule` compares the number of steps with a schedule without any cost,
first come, first served: each row takes the next request in the step after its last token.
"""

import argparse
import asyncio
import dataclasses
import heapq
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.engine.errors import OutputTooLong
from scripts.arguments import positive
from scripts.benchmarks.command import WEIGHTS, add_model_arguments, conditions, publish
from scripts.benchmarks.over_http.open_loop import (
    POPULARITIES,
    Popularity,
    add_rates,
    draw,
    limits_of,
    poisson_times,
    rate_figures,
    times_of,
)

if TYPE_CHECKING:
    from deployments.engine.request import Request

_FILES = 8  # different adapters; more adapters are copies, each in its own slot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--adapters", type=positive, default=8, help="on the device")
    add("--asked", type=positive, nargs="+", help="of them, one run each; default: all")
    add("--popularity", choices=POPULARITIES, nargs="+", default=["turns"], help="of those asked")
    add("--prefill_tokens", type=int, default=256, help="prompt tokens of a step")
    add("--repeats", type=positive, default=3, help="of each run; the median counts")
    patterns = ["closed_loop", "uneven"]
    add("--pattern", choices=patterns, default="closed_loop", help="of arrival")
    add("--concurrency", type=positive, nargs="+", default=[16], help="rows of each run")
    add("--requests", type=positive, default=64, help="of each run")
    bounds: dict[str, Any] = {"type": int, "nargs": 2, "metavar": ("LEAST", "MOST")}
    add("--prompt_tokens", default=[20, 30], help="of a request", **bounds)
    add("--output_tokens", default=[64, 64], help="of a request", **bounds)
    add("--long_prompt_tokens", type=positive, help="of a prompt that is read beside the others")
    slower = "others' time per token beside a long prompt, at most so many times; default: no bound"
    add("--long_prompt_slowdown", type=float, help=slower)
    add_rates(parser)
    add("--weights", choices=WEIGHTS, default="none", help="of our engine, on a CPU")
    add("--max_waiting", type=positive, default=256, help="requests; one more is refused")
    add("--seed", type=int, default=0, help="of lengths, tokens, adapters and times")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    asked = args.asked or [args.adapters]
    if max(asked) > args.adapters:
        print(f"--asked {max(asked)}: at most --adapters, {args.adapters}", file=sys.stderr)
        return 2
    before = os.getloadavg()
    found: dict[str, list[dict[str, Any]]] = {"runs": [], "rates": [], "limits": []}
    try:
        _measure_each(args, asked, found)
    except OutputTooLong as refused:
        print(f"{args.model}: {refused}", file=sys.stderr)
        return 2
    measured = conditions(args, before) | {name: lines for name, lines in found.items() if lines}
    shown = [(name, line) for name, lines in found.items() for line in lines]
    publish("load", arguments, measured, out=args.out, lines=shown)
    return 0


def _measure_each(
    args: argparse.Namespace, asked: Sequence[int], found: dict[str, list[dict[str, Any]]]
) -> None:
    """Add the runs of each number of rows to `found`.

    Raises:
        OutputTooLong: the model's context is shorter than a prompt and its answer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for rows in args.concurrency:
            with _Load(args, rows, Path(scratch) / str(rows)) as load:
                for who in itertools.product(asked, args.popularity):
                    if who[0] > 1 or who[1] == args.popularity[0]:  # one adapter: all are alike
                        load.measure(*who, found)


class _Load:
    """An engine of so many rows, and what is asked of it."""

    def __init__(self, args: argparse.Namespace, rows: int, scratch: Path) -> None:
        from scripts.benchmarks.in_process.engine_runs import StepCounter, start_engine

        self._args, self._rows = args, rows
        self._decoder = _decoder(args, rows, scratch)
        self._counter = StepCounter(self._decoder)
        longest = self._requests(1, 1, "one")[0]
        longest = dataclasses.replace(longest, prompt_ids=(3,) * _longest(args))
        queue = [longest] * max(args.requests, args.max_waiting)
        self._engine = start_engine(
            self._decoder,
            queue,
            rows,
            args.prefill_tokens,
            long_prompt_slowdown=args.long_prompt_slowdown,
        )
        self._counter.engine = self._engine

    def __enter__(self) -> "_Load":
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()

    def measure(self, asked: int, popularity: Popularity, found: dict[str, list[Any]]) -> None:
        """Add to `found` the run of so many at a time, and those of each rate."""
        about = {"rows": self._rows, "adapters": asked, "popularity": popularity}
        found["runs"].append(about | self._closed(asked, popularity))
        rates = [self._open(rate, asked, popularity) for rate in self._args.rates]
        found["rates"] += [about | rate for rate in rates]
        if rates:
            found["limits"].append(about | limits_of(rates, self._args.first_token_p95_s))

    def _requests(self, num: int, asked: int, popularity: Popularity) -> "list[Request]":
        from scripts.benchmarks.in_process.engine_runs import random_requests

        args = self._args
        return random_requests(
            num,
            self._decoder.vocab_size,
            prompt_tokens=args.prompt_tokens,
            output_tokens=args.output_tokens,
            adapters=draw([f"a{n}" for n in range(asked)], popularity, num, args.seed),
            seed=args.seed,
        )

    def _closed(self, asked: int, popularity: Popularity) -> dict[str, Any]:
        from scripts.benchmarks.in_process.traffic import closed

        requests = self._requests(self._args.requests, asked, popularity)
        at_once = self._rows if self._args.pattern == "closed_loop" else len(requests)
        asyncio.run(closed(self._engine, requests[: 2 * self._rows], at_once))  # warm-up
        lengths = [request.sampling.max_tokens for request in requests]
        samples: list[dict[str, Any]] = []
        for _ in range(self._args.repeats):
            self._counter.steps.clear()
            started = time.perf_counter()
            answers = asyncio.run(closed(self._engine, requests, at_once))
            seconds = time.perf_counter() - started
            samples.append(
                {
                    "requests": len(requests),
                    "prompt_tokens": sum(len(request.prompt_ids) for request in requests),
                    "output_tokens": sum(lengths),
                    "seconds": round(seconds, 3),
                    "tokens_per_s": round(sum(lengths) / seconds, 1),
                    **times_of(answers),
                    **_schedule(lengths, self._rows, self._counter.steps),
                }
            )
        middle = sorted(samples, key=lambda sample: sample["tokens_per_s"])[len(samples) // 2]
        rates = [sample["tokens_per_s"] for sample in samples]
        found = {**middle, "tokens_per_s_samples": rates}
        if self._args.long_prompt_tokens:
            found["beside_long"] = self._beside_long(requests, at_once, middle)
        return found

    def _beside_long(
        self, requests: "Sequence[Request]", at_once: int, alone: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what the same requests take beside a long prompt, over what they took alone."""
        from deployments.engine.request import SamplingParams
        from scripts.benchmarks.in_process.traffic import beside

        ids = range(3, 3 + self._args.long_prompt_tokens)
        prompt = tuple(number % self._decoder.vocab_size for number in ids)
        long = dataclasses.replace(requests[0], prompt_ids=prompt, sampling=SamplingParams(1))
        answers, read = asyncio.run(beside(self._engine, requests, at_once, long))
        times = times_of(answers)
        own, theirs = (each["time_per_token_ms"]["median"] for each in (times, alone))
        return {
            "long_prompt_tokens": len(prompt),
            "long_prompts_read": len(read),
            "long_first_token_s": times_of(read)["first_token_s"]["median"] if read else None,
            **times,
            "time_per_token_ratio": round(own / theirs, 3),
        }

    def _open(self, rate: float, asked: int, popularity: Popularity) -> dict[str, Any]:
        from scripts.benchmarks.in_process.traffic import opened

        times = poisson_times(rate, self._args.rate_s, self._args.seed)
        requests = self._requests(len(times), asked, popularity)
        outcomes = asyncio.run(opened(self._engine, requests, times))
        return rate_figures(rate, outcomes, self._args.first_token_p95_s)


def _longest(args: argparse.Namespace) -> int:
    return int(max(args.prompt_tokens[1], args.long_prompt_tokens or 0))


def _decoder(args: argparse.Namespace, rows: int, scratch: Path) -> Any:
    from deployments.engine.decoder_factory import FastLimits
    from scripts.benchmarks.bases.models import load_base
    from scripts.benchmarks.in_process.engine_runs import fast_decoder, make_resident
    from scripts.benchmarks.in_process.random_adapters import make_random_adapters

    base = load_base(args.model, args.device, args.dtype)
    folders = make_random_adapters(
        base.model, scratch, num=min(_FILES, args.adapters), rank=args.rank, targets=args.targets
    )
    num_positions = _longest(args) + args.output_tokens[1]
    limits = FastLimits(
        rows + bool(args.long_prompt_tokens), num_positions, max_adapters=args.adapters
    )
    decoder = fast_decoder(base, limits, args.weights)
    lengths = [(args.prompt_tokens[1], args.output_tokens[1])]
    if args.long_prompt_tokens:
        lengths.append((args.long_prompt_tokens, 1))
    for prompt, answer in lengths:
        room = decoder.info.room_after(prompt)
        if room is not None and answer > room:
            raise OutputTooLong(prompt, answer, prompt + room)
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
