"""Measure whether answers depend on what runs beside them, and what it costs that they do not.

    python -m scripts.benchmark invariance --dtype bfloat16 --out invariance.json
    python -m scripts.benchmark invariance --model llama-1b-shape --device cuda --dtype bfloat16 \\
        --rows 1 8 64

With `engine.batch_invariant` false and true: of random mixtures of requests (lengths, adapters,
arrivals, pieces of prompts, prefixes and guesses), those whose logits are not to the bit what each
request has alone; and the time of a decode step and of reading a prompt, on a CPU the processor's.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.benchmarks.command import add_model_arguments, conditions, publish

if TYPE_CHECKING:
    from deployments.engine.model_runner import ModelRunner

_RANKS = (4, 8, 16)
_PROMPT_TOKENS = 500
_CONTEXT = 64  # positions before a timed step
_WARM_UP = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, rank=None)
    add = parser.add_argument
    add("--weights", choices=["none", "auto", "int8", "int4"], default="none", help="on a CPU")
    add("--rows", type=int, nargs="+", default=[1, 4, 16], help="of the timed steps")
    add("--mixtures", type=int, default=2, help="whose logits are compared")
    add("--requests", type=int, default=8, help="of a mixture")
    add("--steps", type=int, default=20, help="of each time; the median counts")
    add("--repeats", type=int, default=3, help="of both sides in turn; the least median counts")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        sides = {wanted: _decoder(args, Path(scratch), wanted) for wanted in (False, True)}
        times: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(args.repeats):
            for wanted, (decoder, names) in sides.items():
                times[wanted].append(_times(args, decoder, names))
        measured = {
            "invariant" if wanted else "not": {
                "reason": decoder.info.batch_invariant_reason,
                "differing": _differing(args, decoder, names),
                "ms": {key: min(each[key] for each in times[wanted]) for key in times[wanted][0]},
            }
            for wanted, (decoder, names) in sides.items()
        }
    report = {**conditions(args, load_before), **measured, "cost": _cost(measured)}
    publish("invariance", arguments, report, out=args.out, lines=report.items())
    return 0


def _decoder(
    args: argparse.Namespace, scratch: Path, wanted: bool
) -> "tuple[ModelRunner, list[str]]":
    import dataclasses

    from deployments.engine.decoder_factory import FastLimits, build_decoder
    from deployments.engine.model_runner import ModelRunner
    from scripts.benchmarks.bases.models import load_base
    from scripts.benchmarks.in_process.random_adapters import make_random_adapters

    base = dataclasses.replace(load_base(args.model, args.device, args.dtype), eos_ids=frozenset())
    folders = {
        f"r{rank}": make_random_adapters(
            base.model, scratch / f"{wanted}{rank}", num=1, rank=rank, targets=args.targets
        )["a0"]
        for rank in _RANKS
    }
    limits = FastLimits(max(args.rows), _PROMPT_TOKENS + 100, len(folders))
    decoder = build_decoder(
        base, "fast", limits, folders, weights=args.weights, batch_invariant=wanted
    )
    assert isinstance(decoder, ModelRunner), "build_decoder('fast') gave another decoder"
    for name, folder in folders.items():
        decoder.load_adapter(name, folder)
    return decoder, list(folders)


def _differing(args: argparse.Namespace, decoder: "ModelRunner", names: list[str]) -> str:
    from scripts.benchmarks.in_process.mixtures import differing, random_mixture

    found = 0
    for seed in range(args.mixtures):
        mixture = random_mixture(
            seed,
            decoder.vocab_size,
            [None, *names],
            num_requests=args.requests,
            prompt_tokens=(2, 300),
            output_tokens=16,
            reuses_prefixes=bool(seed % 2),
            tries_drafts=bool(seed % 2),
        )
        found += len(differing(decoder, mixture))
    return f"{found} of {args.mixtures * args.requests}"


def _times(args: argparse.Namespace, decoder: "ModelRunner", names: list[str]) -> dict[str, float]:
    """Return the milliseconds of steps of so many rows, and of reading a prompt."""
    steps = {f"step_{rows}": _step_ms(decoder, names, rows, args.steps) for rows in args.rows}
    return {**steps, "prompt": _prompt_ms(decoder, names, args.steps)}


def _step_ms(decoder: "ModelRunner", names: list[str], rows: int, steps: int) -> float:
    """Return the milliseconds of a decode step of so many rows, with adapters in turn."""
    plan_of = _plans(decoder, names, rows, _CONTEXT, steps + _WARM_UP + 1)
    decoder.step(plan_of()).wait()
    times = [_timed(decoder, lambda: decoder.step(plan_of()).wait()) for _ in range(steps)]
    decoder.reset()
    return round(statistics.median(times[_WARM_UP:]), 3)


def _prompt_ms(decoder: "ModelRunner", names: list[str], steps: int) -> float:
    """Return the milliseconds of reading a prompt of _PROMPT_TOKENS tokens at once."""
    times = []
    for _ in range(max(3, steps // 4)):
        plan = _plans(decoder, names, 1, _PROMPT_TOKENS, 2)()
        times.append(_timed(decoder, lambda plan=plan: decoder.step(plan).wait()))  # type: ignore[misc]
        decoder.reset()
    return round(statistics.median(times[1:]), 3)


def _plans(
    decoder: "ModelRunner", names: list[str], rows: int, prompt_tokens: int, tokens: int
) -> Callable[[], Any]:
    """Return what gives the next step's plan for requests of one length."""
    from deployments.engine.request import Request, SamplingParams
    from deployments.engine.scheduling.scheduler import Scheduler

    scheduler = Scheduler(
        decoder.capacities,
        prefill_tokens=rows * prompt_tokens,
        can_split_prompts=decoder.can_split_prompts,
    )
    prompt = tuple(3 + i % 97 for i in range(prompt_tokens))
    for i in range(rows):
        adapter = names[i % len(names)]
        scheduler.add(Request("r", prompt, adapter, SamplingParams(tokens)), 0.0)

    def plan() -> Any:
        scheduled = scheduler.schedule(0.0)
        for job in scheduled.admitted:
            assert job.row is not None, "admitted without a row"
            decoder.set_adapter(job.row, job.request.adapter)
        return scheduled

    return plan


def _timed(decoder: "ModelRunner", work: Callable[[], object]) -> float:
    """Return the milliseconds of a call that ends with its results on the host; on a CPU of the
    processor, since others may use it too."""
    clock = time.perf_counter if decoder.device.type == "cuda" else time.process_time
    started = clock()
    work()
    return 1000 * (clock() - started)


def _cost(measured: dict[str, Any]) -> dict[str, float]:
    """Return the times with one order over those without."""
    without, with_it = measured["not"]["ms"], measured["invariant"]["ms"]
    return {key: round(with_it[key] / without[key], 3) for key in without}
