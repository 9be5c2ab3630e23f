"""Measure adapters that come and go, on one replica's engine and caches in process.

    python -m scripts.benchmark churn --out docs/benchmarks/churn_cpu.json
    python -m scripts.benchmark churn --model llama-1b-shape --device cuda --dtype bfloat16 \
        --registered 500 --slots 64 --rows 32 --out docs/benchmarks/churn_llama_1b_shape_h100.json

load: one adapter from each cache to the device. hot_add: new versions while answers run, and what
the others' time per token does meanwhile. zipf: --registered adapters in --slots of the device,
asked with Zipf's popularity (s = 1), against the same load with every adapter resident. cycles:
updates and roll-backs under load: failed requests, answers of another version, memory.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.command import add_model_arguments, publish

PARTS = ("load", "hot_add", "zipf", "cycles")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add = parser.add_argument
    add("--registered", type=int, default=60, help="adapters in the catalogue")
    add("--slots", type=int, default=8, help="adapters on the device")
    add("--rows", type=int, default=8, help="answers of one batch")
    add("--prompt_tokens", type=int, default=25, help="of each question")
    add("--output_tokens", type=int, default=16, help="of each answer of the Zipf load")
    add("--requests", type=int, default=200, help="of the Zipf load")
    add("--rate", type=float, default=3.0, help="Zipf requests a second")
    add("--adds", type=int, default=5, help="new versions")
    add("--cycles", type=int, default=100, help="updates and roll-backs")
    add("--host_mib", type=int, default=1024, help="main memory for adapters")
    add("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="default: all")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from scripts.benchmarks.in_process.churn_parts import measure

    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(args, Path(scratch))
    shown = [(part, measured[part]) for part in args.parts]
    publish("churn", arguments, measured, out=args.out, lines=shown)
    return 0
