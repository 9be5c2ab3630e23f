"""Measure the engine in process, against PEFT, in one run: many adapters in one batch.

    python -m scripts.benchmark engine --dtype float32 --out docs/benchmarks/engine_cpu.json
    python -m scripts.benchmark engine --model flan-t5-xl-shape --device cuda --requests 64 \\
        --rows 64 --prompt_tokens 64 --output_tokens 128 --out docs/benchmarks/engine_h100.json

Random adapters that take turns, `--requests` questions at once; end-of-sequence tokens are ignored,
so that every side makes the same number of tokens. Sides: the engine with mixed adapters, without
adapters (on a GPU also before any is resident), and with one stream; PEFT's mixed batch
(`adapter_names`), and `set_adapter` + `generate` one request at a time. Each side is warmed up
once; then all are timed in turn, `--repeats` times, and the medians are compared. With
`--continuous_batching` also transformers' own (the manager of `generate_batch`, as it comes),
without an adapter and with one for all requests, beside this engine with that one. With `--served`
also the engine as a replica runs it, in a process of its own, beside bare steps of the same rows:
`decoding_per_s` leaves the reading of prompts out. Also: the time of one decode step by batch size,
without and with adapters, and its memory floor.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.command import WEIGHTS, add_model_arguments, publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--adapters", type=int, default=8, help="on the device")
    parser.add_argument("--prefill_tokens", type=int, default=256, help="prompt tokens of a step")
    parser.add_argument("--repeats", type=int, default=3, help="of each side")
    parser.add_argument("--requests", type=int, default=16, help="at the same time")
    parser.add_argument("--rows", type=int, default=16, help="answers of one batch")
    parser.add_argument("--prompt_tokens", type=int, default=25, help="a fifth more or less")
    parser.add_argument("--output_tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--sequential", type=int, default=2, help="requests of the sequential side")
    parser.add_argument("--skip_peft", action="store_true", help="the engine alone")
    parser.add_argument(
        "--served", action="store_true", help="also the engine in a process of its own"
    )
    theirs = "also transformers', of a causal base"
    parser.add_argument("--continuous_batching", action="store_true", help=theirs)
    parser.add_argument(
        "--beside_s", type=float, help="also time steps while every core is taken, so long"
    )
    parser.add_argument(
        "--weights", choices=WEIGHTS, default="none", help="of our engine, on a CPU"
    )
    quantised = ["none", "int8", "nf4", "fp8"]
    parser.add_argument("--quantization", choices=quantised, default="none", help="on a GPU")
    parser.add_argument(
        "--kv_cache_dtype", choices=["auto", "int8"], default="auto", help="int8: on a GPU"
    )
    parser.add_argument(
        "--batch_sizes",
        type=int,
        nargs="+",
        default=[1, 4, 8, 16, 32, 64, 128, 256],
        help="of the timed steps, as far as there are rows",
    )


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from scripts.benchmarks.in_process.engine_sides import Refused, measure

    with tempfile.TemporaryDirectory() as scratch:
        try:
            measured = measure(args, Path(scratch))
        except Refused as error:
            print(error, file=sys.stderr)
            return 2
    shown = [
        *measured["sides"].items(),
        *(("step", step) for step in measured["steps"]),
        ("ratios", measured["ratios"]),
        *(("beside others", each) for each in measured["beside_others"]),
    ]
    publish("engine", arguments, measured, out=args.out, lines=shown)
    return 0
