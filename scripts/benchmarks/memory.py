"""Serve a quantised base within a memory budget, and measure the most that the process takes.

    python -m scripts.benchmark memory --model flan-t5-xl-shape --device cuda --dtype bfloat16 \\
        --quantization nf4 --budget_gb 4

The base is written to a folder first and loaded from there, weight by weight; its rows are planned
for what is left. Every row then answers at once, prompts and answers at full length, adapters
mixed.
`--budget_gb` is the size of a card, in 2^30 bytes as cards are sold: torch gets what CUDA takes not
itself (torch.cuda.set_per_process_memory_fraction), and cuBLAS the workspace of a small card. On a
CPU nothing is limited or measured but the plan.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks.command import add_model_arguments, publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    kinds = ["none", "int8", "nf4", "fp8"]
    parser.add_argument("--quantization", choices=kinds, default="nf4", help="of the base")
    parser.add_argument("--budget_gb", type=float, help="size of the card, in GiB; none: all of it")
    parser.add_argument("--adapters", type=int, default=8, help="on the device")
    parser.add_argument("--rows", type=int, default=8, help="answers that decode together")
    parser.add_argument("--prompt_tokens", type=int, default=512, help="of each prompt")
    parser.add_argument("--output_tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--prefill_tokens", type=int, default=1024, help="prompt tokens of a step")
    parser.add_argument("--requests", type=int, default=16, help="answered, all rows at a time")


def run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from scripts.benchmarks.in_process.card_memory import measure

    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(args, Path(scratch))
    shown = ("weights", "rows", "kv_mib", "tokens_per_s", "peak_gib", "budget_gib", "memory")
    publish(
        "memory",
        arguments,
        measured,
        out=args.out,
        lines=[(name, measured[name]) for name in shown],
    )
    peak, budget = measured["peak_gib"], args.budget_gb
    return 1 if peak is not None and budget is not None and peak > budget else 0
