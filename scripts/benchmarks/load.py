"""Measure the engine in process under load that does not come all at once.

    python -m scripts.benchmark load --pattern closed_loop --concurrency 32 64 128 ...
    python -m scripts.benchmark load --pattern uneven --concurrency 64 ...

`closed_loop`: as many requests at a time as `--concurrency` says, the next one as soon as one has
ended; prompts uniform between `--prompt_tokens`, answers all of one length. `uneven`: all requests
wait from the start, answers uniform between `--output_tokens`, for that many rows. Adapters take
turns; lengths are seeded; end-of-sequence tokens are ignored. Tokens are turned into text.

`occupancy_while_waiting` is the share of rows that got a token, over the steps at whose start
requests waited. `of_ideal_schedule` compares the number of steps with a schedule without any cost,
first come, first served: each row takes the next request in the step after its last token.
"""

import argparse
import asyncio
import dataclasses
import heapq
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from deployments.engine.decoder_factory import FastLimits, build_decoder
from deployments.engine.device_tokens import DeviceTokens
from deployments.engine.engine import Engine, EngineLimits
from deployments.engine.model_loader import Pretrained
from deployments.engine.model_runner import ModelRunner
from deployments.engine.request import Request, SamplingParams
from deployments.engine.sequence import SchedulerOutput
from scripts.benchmarks.models import load_base, make_random_adapters
from scripts.environment import device_name, environment, save_report

_FILES = 8  # different adapters; more residents are copies at places of their own


class _StepCounter:
    """Keeps how many rows each step of a decoder served, and whether requests waited."""

    def __init__(self, decoder: ModelRunner) -> None:
        self.steps: list[tuple[int, bool]] = []
        self.engine: Engine | None = None
        step = decoder.step

        def counted(scheduled: SchedulerOutput) -> DeviceTokens:
            if scheduled.emits and self.engine is not None:
                self.steps.append((len(scheduled.emits), self.engine.num_waiting > 0))
            return step(scheduled)

        decoder.step = counted  # type: ignore[method-assign]


def run(args: argparse.Namespace, argv: Sequence[str] | None = None) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [_measure(args, rows, Path(scratch) / str(rows)) for rows in args.concurrency]
    report = {
        "what": "load",
        **environment(),
        "settings": {k: v for k, v in vars(args).items() if k not in ("out", "what")},
        "device": device_name(args.device),
        "runs": runs,
        "command": "python -m scripts.benchmark " + " ".join(argv or sys.argv[1:]),
    }
    save_report(report, args.out)
    for line in runs:
        print(json.dumps(line))
    print(json.dumps(report))
    return 0


def _measure(args: argparse.Namespace, rows: int, scratch: Path) -> dict[str, Any]:
    base = load_base(args.model, args.device, args.dtype)
    base = dataclasses.replace(base, eos_ids=frozenset())
    work = list(_requests(args, base.model.config.get_text_config().vocab_size))
    engine, counted = _start(args, base, rows, scratch)
    at_once = rows if args.pattern == "closed_loop" else len(work)
    asyncio.run(_all(engine, work[: 2 * rows], at_once))  # warm-up
    samples: list[dict[str, Any]] = []
    for _ in range(args.repeats):
        counted.steps.clear()
        started = time.perf_counter()
        first_tokens = asyncio.run(_all(engine, work, at_once))
        seconds = time.perf_counter() - started
        num_tokens = sum(request.sampling.max_tokens for request in work)
        crowded = [served for served, waits in counted.steps if waits]
        ideal = _ideal_steps([request.sampling.max_tokens for request in work], rows)
        samples.append(
            {
                "rows": rows,
                "requests": len(work),
                "prompt_tokens": sum(len(request.prompt_ids) for request in work),
                "output_tokens": num_tokens,
                "seconds": round(seconds, 3),
                "tokens_per_s": round(num_tokens / seconds, 1),
                "first_token_p50_s": round(statistics.median(first_tokens), 4),
                "steps": len(counted.steps),
                "occupancy": round(num_tokens / (rows * len(counted.steps)), 4),
                "occupancy_while_waiting": round(sum(crowded) / (rows * len(crowded)), 4)
                if crowded
                else None,
                "of_ideal_schedule": round(ideal / len(counted.steps), 4),
            }
        )
    engine.close()
    middle = sorted(samples, key=lambda sample: sample["tokens_per_s"])[len(samples) // 2]
    return {**middle, "tokens_per_s_samples": [sample["tokens_per_s"] for sample in samples]}


def _requests(args: argparse.Namespace, vocab_size: int) -> Iterator[Request]:
    rng = random.Random(args.seed)
    for number in range(args.requests):
        prompt = rng.randint(*args.prompt_tokens)
        output = rng.randint(*args.output_tokens)
        ids = tuple(rng.randrange(3, vocab_size) for _ in range(prompt))
        yield Request(f"r{number}", ids, f"a{number % args.adapters}", SamplingParams(output))


def _start(
    args: argparse.Namespace, base: Pretrained, rows: int, scratch: Path
) -> tuple[Engine, _StepCounter]:
    folders = make_random_adapters(
        base.model, scratch, num=min(_FILES, args.adapters), rank=args.rank, targets=args.targets
    )
    longest = args.prompt_tokens[1]
    limits = FastLimits(rows, longest + args.output_tokens[1], max_adapters=args.adapters)
    decoder = build_decoder(base, "fast", limits, folders)
    assert isinstance(decoder, ModelRunner), "build_decoder('fast') gave another decoder"
    make_resident(decoder, list(folders.values()), args.adapters)
    decoder.warm_up()
    counted = _StepCounter(decoder)
    engine_limits = EngineLimits(
        rows, args.requests, longest, prefill_tokens=args.prefill_tokens, emit_interval_s=0.03
    )
    engine = counted.engine = Engine(decoder, engine_limits)
    engine.start()
    return engine, counted


def make_resident(decoder: ModelRunner, folders: Sequence[Path], num_adapters: int) -> None:
    """Adapters a0, a1, ...: the folders' in turn, each at a place of its own."""
    read = [decoder.read_adapter(folder).to(decoder.device) for folder in folders]
    for number in range(num_adapters):
        decoder.install(f"a{number}", read[number % len(read)], probe=False)


async def _all(engine: Engine, work: Sequence[Request], at_once: int) -> list[float]:
    """Seconds to the first token of each request."""
    turnstile = asyncio.Semaphore(at_once)

    async def one(request: Request) -> float:
        async with turnstile:
            async for event in engine.generate(request):
                last = event
        if last.error is not None or last.num_tokens != request.sampling.max_tokens:
            raise RuntimeError(f"{request.request_id}: {last.num_tokens} tokens, {last.error}")
        assert last.timings.first_token_s is not None, "tokens without a first one"
        return last.timings.first_token_s

    return await asyncio.gather(*(one(request) for request in work))


def _ideal_steps(lengths: Sequence[int], rows: int) -> int:
    """Steps of a schedule without any cost, first come, first served."""
    ends = [0] * rows
    for length in lengths:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return max(ends)
